"""Image files scored one after the other, for `draft score`: what fails at one of them costs the others nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from draft_core.errors import DraftError
from draft_core.rewards.images import read_image
from draft_core.rewards.objective import checked_scores


@dataclass(frozen=True)
class Scored:
    """An image file and its score, or why it has none.

    Arguments:
        score: a finite number; None where there is an error.
    """

    path: Path
    score: float | None
    error: DraftError | None = None


def score_files(name: str, reward: torch.nn.Module, paths: Sequence[Path], prompts: Sequence[str]) -> Iterator[Scored]:
    """The score of each file, read one at a time.

    Arguments:
        name: of the reward, for messages.
        prompts: one for each path.
    """
    for path, prompt in zip(paths, prompts, strict=True):
        try:
            yield Scored(path, _score(name, reward, path, prompt))
        except DraftError as error:
            yield Scored(path, None, error)


def _score(name: str, reward: torch.nn.Module, path: Path, prompt: str) -> float:
    try:
        with torch.no_grad():
            score = float(checked_scores(name, reward, read_image(path), [prompt]))
    except torch.OutOfMemoryError as error:
        raise DraftError("it does not fit into memory", where=str(path), next="reduce it") from error
    if not math.isfinite(score):
        raise DraftError(f"its score is {score}", where=str(path), next=f"see `draft rewards check {name}`")
    return score
