"""Image files scored one after the other, `score`: what fails at one of them costs the others nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from draft_core.display import table
from draft_core.errors import DraftError
from draft_core.library.rewards import reward_of
from draft_core.prompt_rows import Column, PromptRow
from draft_core.recipe.columns import columns_of
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.environments import spec_of
from draft_core.rewards.images import read_image
from draft_core.rewards.objective import NO_COLUMNS, checked_scores
from draft_core.rewards.protocol import as_reward, scope, takes
from draft_core.runs.build import reward_config


@dataclass(frozen=True)
class Scored:
    """An image file and its score, or why it has none.

    Arguments:
        score: a finite number; None where there is an error.
    """

    path: Path
    score: float | None
    error: DraftError | None = None


class FileScores(dict[Path, float]):
    """Image file -> its score, in the order of the files; a table in a notebook.

    Arguments:
        scores: file -> score.
        name: of the reward.
        unit: what its score is counted in.
    """

    def __init__(self, scores: Mapping[Path, float], name: str, unit: str) -> None:
        super().__init__(scores)
        self.name, self.unit = name, unit

    def mean(self) -> float:
        """The mean over all files."""
        return fmean(self.values())

    def _repr_html_(self) -> str:
        heading = f"{self.name} ({self.unit})" if self.unit else self.name
        return table(["image", heading], [(path.name, score) for path, score in self.items()])


def score(
    images: Path | str | Sequence[Path | str],
    reward: str | torch.nn.Module | Callable[..., torch.Tensor],
    *,
    prompts: str | Sequence[str] | None = None,
    catalog: Catalog | None = None,
    **fields: Any,
) -> FileScores:
    """The scores of image files: `score("photos", "jpeg", quality=50)`.

    Files are read, and scored, one at a time, so that their sizes may differ.

    Arguments:
        images: a folder, whose image files are taken in the order of their names; or a file; or a list of files.
        reward: an installed kind, or a module or function as `Objective` takes it.
        prompts: one for all images, or one for each; they may carry the columns that the reward reads (`PromptRow`).
        catalog: what is installed; loaded if left out.
        fields: of the config of an installed kind.

    Raises:
        DraftError: if there is no image, one cannot be read, prompts are missing or their number is another, the
            reward scores videos, or a score is not finite.
    """
    files = _files_of(images)
    name, unit, columns, scorer = _scorer(reward, fields, catalog, has_prompts=prompts is not None)
    if takes(scorer) == "video":
        raise DraftError(f"reward {name!r} scores videos, and these are images", where="score", next="take another one")
    if scope(scorer) == "group":
        raise DraftError(
            f"reward {name!r} compares the images of a prompt, and files are scored one by one",
            where="score",
            next="call it with a batch",
        )
    given = [prompts or ""] * len(files) if prompts is None or isinstance(prompts, str) else list(prompts)
    if len(given) != len(files):
        raise DraftError(
            f"{len(given)} prompts for {len(files)} images", where="score: prompts", next="give one, or one for each"
        )
    found: dict[Path, float] = {}
    for scored in score_files(name, scorer, files, given, columns):
        if scored.score is None:
            raise DraftError(f"it has no score ({scored.error})", where=str(scored.path), next="leave it out")
        found[scored.path] = scored.score
    return FileScores(found, name, unit)


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


def _scorer(
    reward: str | torch.nn.Module | Callable[..., torch.Tensor],
    fields: Mapping[str, Any],
    catalog: Catalog | None,
    *,
    has_prompts: bool,
) -> tuple[str, str, Mapping[str, Column], torch.nn.Module]:
    """Name, unit, columns and module of a reward."""
    if not isinstance(reward, str):
        name = getattr(reward, "__name__", type(reward).__name__)
        if fields:
            raise DraftError(
                f"{next(iter(fields))} is a field of an installed kind, and {name} is none",
                where="score",
                next="leave it out",
            )
        return name, "", NO_COLUMNS, as_reward(reward, name).requires_grad_(False).eval()
    catalog = catalog if catalog is not None else load_catalog()
    config = reward_config(reward, fields, catalog)
    spec = spec_of(config, catalog)
    if spec.needs_prompt and not has_prompts:
        raise DraftError(f"reward {reward!r} scores images against a prompt", where="score: prompts", next="give one")
    columns = columns_of(config, catalog, where="score: columns")
    return reward, spec.unit, columns, reward_of(config, catalog)


def _files_of(images: Path | str | Sequence[Path | str]) -> list[Path]:
    """The image files of a folder, or those that are named."""
    files = [images] if isinstance(images, (str, Path)) else images
    if not isinstance(files, Sequence) or not all(isinstance(file, (str, Path)) for file in files):
        raise DraftError(f"it is {images!r}", where="score: images", next="give a folder, a file, or a list of files")
    named = [Path(file) for file in files]
    if isinstance(images, (str, Path)) and named[0].is_dir():
        known = Image.registered_extensions()  # which Pillow fills when it is first asked
        named = sorted(path for path in named[0].iterdir() if path.suffix.lower() in known and path.is_file())
    if not named:
        raise DraftError("there is no image", where=f"score: {images}", next="give a folder with images, or files")
    for path in named:
        if not path.is_file():
            raise DraftError("no such file", where=str(path), next="check the path")
    return named
