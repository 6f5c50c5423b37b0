"""What a program answers, read: one score for each image, or one sentence on the line that is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

LARGEST = 3.4e38  # of a float32
SHOWN = 80  # letters of an answer that a message repeats
REMEDY = 'answer each image by one line, such as {"score": 0.5}, and print all else to the standard error'


class WrongAnswersError(Exception):
    """How a program's answers, or its end, are not what was agreed.

    Arguments:
        what: as in `draft_core.errors.DraftError`.
        next: likewise.
    """

    def __init__(self, what: str, next: str) -> None:
        super().__init__(what)
        self.what, self.next = what, next


def scores_of(answers: Sequence[bytes], paths: Sequence[str]) -> list[float]:
    """The scores in a program's answers.

    Arguments:
        answers: a line of JSON for each image: a number, or an object whose `score` is one. An object may name its
            `image`, which must then be the path that was asked for.
        paths: of the images, as many.

    Raises:
        WrongAnswersError: that names the first line which gives no finite score.
    """
    pairs = zip(answers, paths, strict=True)
    return [_score_of(answer, path, f"line {number} of its answers") for number, (answer, path) in enumerate(pairs, 1)]


def _score_of(answer: bytes, path: str, line: str) -> float:
    text = answer.decode("utf-8", errors="replace")
    shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise WrongAnswersError(f"{line}, {shown}, is no JSON", REMEDY) from None
    if isinstance(value, dict):
        if value.get("image", path) != path:
            raise WrongAnswersError(
                f"{line} is about another image, {value['image']!r}", "answer in the order in which it was asked"
            )
        value = value.get("score")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongAnswersError(f"{line}, {shown}, has no score", REMEDY)
    if not abs(value) <= LARGEST:  # NaN too
        raise WrongAnswersError(
            f"{line}, {shown}, is no finite number of 32 bits",
            "let it give a number to every image, a low one to those that it cannot read",
        )
    return float(value)
