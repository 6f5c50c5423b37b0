"""Image files scored one after the other, for `draft score`: what fails at one of them costs the others nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft_core.errors import DraftError
from draft_core.prompt_rows import Column, PromptRow
from draft_core.rewards.images import read_image
from draft_core.rewards.objective import NO_COLUMNS, checked_scores


@dataclass(frozen=True)
class Scored:
    """An image file and its score, or why it has none.

    Arguments:
        score: a finite number; None where there is an error.
    """

    path: Path
    score: float | None
    error: DraftError | None = None


def given_columns(reward: str, read: Mapping[str, Column], given: Sequence[str]) -> dict[str, str]:
    """Name of a column -> its text, of what stands on the command line as "name=text".

    Arguments:
        reward: its kind.
        read: what it reads, by its own names.

    Raises:
        DraftError: if one is of another form, or of a column that the reward does not read, or one that it reads is
            missing or of another type.
    """
    names = [column.name for column in read.values()]
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            problem = (
                "it is not of the form name=value" if not equals else f"reward {reward!r} reads no column {name!r}"
            )
            known = f"it reads {', '.join(names)}" if names else "leave it out, it reads none"
            raise DraftError(problem, where=f"--column {text}", next=known)
        values[name] = value
    for column in read.values():
        if column.name not in values:
            advice = f"give --column {column.name}=..."
            raise DraftError(f"reward {reward!r} reads column {column.name!r}", where="--column", next=advice)
        column.of(PromptRow("", values), where="--column")
    return values


def score_files(
    name: str,
    reward: torch.nn.Module,
    paths: Sequence[Path],
    prompts: Sequence[str],
    columns: Mapping[str, Column] = NO_COLUMNS,
    row: Mapping[str, str] | None = None,
) -> Iterator[Scored]:
    """The score of each file, read one at a time.

    Arguments:
        name: of the reward, for messages.
        prompts: one for each path.
        columns: what the reward reads beside the prompts, by its own names.
        row: name of a column -> its text, for all images.
    """
    for path, prompt in zip(paths, prompts, strict=True):
        try:
            yield Scored(path, _score(name, reward, path, PromptRow(prompt, row) if row else prompt, columns))
        except DraftError as error:
            yield Scored(path, None, error)


def _score(name: str, reward: torch.nn.Module, path: Path, prompt: str, columns: Mapping[str, Column]) -> float:
    try:
        with torch.no_grad():
            score = float(checked_scores(name, reward, read_image(path), [prompt], columns))
    except torch.OutOfMemoryError as error:
        raise DraftError("it does not fit into memory", where=str(path), next="reduce it") from error
    if not math.isfinite(score):
        raise DraftError(f"its score is {score}", where=str(path), next=f"see `draft rewards check {name}`")
    return score
