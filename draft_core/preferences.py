"""Which of two images is the better one, as the columns of a list of prompts say it; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draft_core.errors import DraftError

TIE = 0.5
TIES = {"": False, "false": False, "true": True}  # what the column `tie` holds, in any case of letters


@dataclass(frozen=True)
class Preference:
    """Two images of one prompt, and which of them is preferred.

    Arguments:
        winner, loser: their files.
        grade: share of the answers that prefer the winner, from 0.5, a tie, to 1.
    """

    winner: Path
    loser: Path
    grade: float = 1.0


def preferences(columns: Mapping[str, Sequence[str]], folder: Path) -> list[Preference]:
    """The preference beside each prompt of a list.

    Arguments:
        columns: `winner` and `loser` name image files; `tie`, true or false, and `grade` need not be there. An empty
            text is none. Other columns count for nothing.
        folder: where relative paths begin.

    Raises:
        DraftError: that names the first pair which is none, and what is wrong with it.
    """
    for name in ("winner", "loser"):
        if name not in columns:
            raise DraftError(
                f"it has no {name!r}",
                next="give every pair a prompt, a winner and a loser",
            )
    count = len(columns["winner"])
    optional = {name: columns.get(name, [""] * count) for name in ("tie", "grade")}
    rows = zip(columns["winner"], columns["loser"], optional["tie"], optional["grade"], strict=True)
    found = []
    for number, (winner, loser, tie, grade) in enumerate(rows, 1):
        try:
            found.append(Preference(folder / _named(winner), folder / _named(loser), _grade(tie, grade)))
            if found[-1].winner == found[-1].loser:
                raise ValueError(f"both images are {winner}")
        except ValueError as error:
            raise DraftError(f"pair {number}: {error}", next="correct it, or leave that pair out") from None
    return found


def _named(image: str) -> str:
    if not image.strip():
        raise ValueError("an image is not named")
    return image


def _grade(tie: str, grade: str) -> float:
    """The grade that is said, that of a tie, or 1."""
    if tie.lower() not in TIES:
        raise ValueError(f"its tie is {tie!r}, neither true nor false")
    is_tie = TIES[tie.lower()]
    if not grade:
        return TIE if is_tie else 1.0
    try:
        share = float(grade)
    except ValueError:
        share = -1.0
    if not TIE <= share <= 1:
        raise ValueError(f"its grade is {grade!r}, no number from 0.5 to 1")
    if is_tie and share != TIE:
        raise ValueError(f"it is a tie with the grade {grade}")
    return share
