"""The reward under test, with images and prompts to try it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from draft_core.errors import DraftError
from draft_core.prompt_rows import Column, PromptRow, plain
from draft_core.registry.config import RewardConfig
from draft_core.registry.specs import RewardSpec
from draft_core.reward_process.making import made_by_plugin
from draft_core.rewards.columns import for_reward

PROMPTS = ("a photograph of a red apple on a table", "two cats", "an oil painting of the sea at night")
SIDE = 64  # pixels, where the reward has no native size
FRAMES = 5  # of a video
OF_COLUMNS = (56, 72)  # height and width of images that stand beside prompts


class Violation(AssertionError):
    """A promise of the reward contract that a reward does not keep."""


@dataclass
class Subject:
    """The reward under test: its spec, the module that names it, and one instance.

    Arguments:
        spec: what the distribution registers.
        config: what the instance is built from.
        naming_module: the module that the entry point names; None where there is no entry point.
        reward: the instance; built by the spec's factory from `config` if left out.

    Raises:
        PluginError: if the spec's factory is missing or fails.
    """

    spec: RewardSpec
    config: RewardConfig
    naming_module: str | None = None
    reward: Any = field(default=None)

    def __post_init__(self) -> None:
        if self.reward is None:
            self.reward = made_by_plugin(self.spec.load(), self.config, f"reward {self.spec.kind!r}")

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of three images: three prompts that the reward can read; where it compares the images of one, that one."""
        return self.rows[:1] * 3 if self.compares else self.rows

    @property
    def compares(self) -> bool:
        """Whether the images of a prompt are scored together."""
        return self.spec.scope == "group"

    @property
    def rows(self) -> tuple[str, ...]:
        """Three prompts that the reward can read: of the spec's `small_prompts`, else `PROMPTS`.

        With the columns that it reads, each is a row: of `small_columns`, else of images and numbers that are drawn.
        """
        texts = (self.spec.small_prompts or PROMPTS)[:3]
        if not self.spec.columns:
            return texts
        columns = {name: self._values(name) for name in self.spec.columns}
        return tuple(
            PromptRow(text, {name: values[place] for name, values in columns.items()})
            for place, text in enumerate(texts)
        )

    def _values(self, name: str) -> Sequence[Any]:
        """Three values of a column, as a list of prompts holds them; images in another size than those to score."""
        if given := self.spec.small_columns.get(name):
            return given
        if self.spec.columns[name] == "number":
            return ("0.25", "0.5", "0.75")
        return list(self.stills(3, *OF_COLUMNS))

    @property
    def columns(self) -> Mapping[str, Column]:
        """What the reward reads, by its own names."""
        return {name: Column(name, kind) for name, kind in self.spec.columns.items()}

    def called(self, images: torch.Tensor, prompts: Sequence[str]) -> Any:
        """What the reward returns for images, with what it reads of the prompts' columns.

        Arguments:
            images: (B, 3, H, W) in [0, 1].
            prompts: B, rows where it reads columns.

        Raises:
            DraftError: if a row lacks a column.
        """
        if not self.columns:
            return self.reward(images, list(prompts))
        beside = for_reward(self.columns, prompts, images, where=f"reward {self.spec.kind!r}")
        return self.reward(images, list(plain(prompts)), columns=beside)

    @property
    def takes_videos(self) -> bool:
        """Whether the reward is given whole videos."""
        return self.spec.takes == "video"

    def images(self, count: int = 3, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """What the reward is tried on: `count` stills, or as many `videos` of five frames where it takes those.

        (`count`, 3, `height`, `width`), or (`count`, 5, 3, `height`, `width`), in [0.2, 0.8]. Sides left out are
        the spec's native size.
        """
        return self.videos(count, FRAMES, height, width) if self.takes_videos else self.stills(count, height, width)

    def videos(
        self, count: int = 3, frames: int = FRAMES, height: int | None = None, width: int | None = None
    ) -> torch.Tensor:
        """Seeded videos (`count`, `frames`, 3, `height`, `width`) in [0.2, 0.8], no two frames of which are alike.

        Each frame mixes the same two images in shares of its own, and its lower half moves to the right meanwhile.
        """
        stills = self.stills(2 * count, height, width)
        first, last = stills[:count], stills[count:]
        shares = torch.rand(frames, generator=torch.Generator().manual_seed(frames)).tolist()
        made = []
        for frame, share in enumerate(shares):
            mixed = (1 - share) * first + share * last
            top, bottom = mixed.tensor_split([mixed.shape[-2] // 2], dim=-2)
            made.append(torch.cat([top, bottom.roll(frame, dims=-1)], dim=-2))
        return torch.stack(made, dim=1)

    def stills(self, count: int = 3, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """Seeded images (`count`, 3, `height`, `width`) with shapes, edges and texture, in [0.2, 0.8].

        Sides that are left out are the spec's native size.
        """
        height, width = height or self.spec.native_size or SIDE, width or self.spec.native_size or SIDE
        generator = torch.Generator().manual_seed(height * 10_000 + width)
        coarse = torch.rand(count, 3, 5, 5, generator=generator)
        shapes = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
        ramp = torch.linspace(0, 1, width).expand(count, 3, height, width)
        texture = torch.rand(count, 3, height, width, generator=generator)
        return 0.2 + 0.6 * (0.5 * shapes + 0.3 * ramp + 0.2 * texture)

    def score(self, images: torch.Tensor, prompts: tuple[str, ...] | None = None) -> torch.Tensor:
        """Scores (B,) of `images` (B, 3, H, W) in [0, 1], or of videos, without gradient.

        `prompts` that are left out are the first B of its `prompts`.

        Raises:
            Violation: if it gives anything but one score for each image.
        """
        with torch.no_grad():
            return self._checked_scores(images, list(prompts or self.prompts[: len(images)]))

    def gradient(self, images: torch.Tensor) -> torch.Tensor:
        """The gradient of the sum of scores in `images`, shaped like them.

        Raises:
            Violation: if there is none, or like `score`.
        """
        images = images.clone().requires_grad_()
        scores = self._checked_scores(images, list(self.prompts[: len(images)]))
        demand(scores.requires_grad, "its scores carry no gradient, though its spec says that it is differentiable")
        (gradient,) = torch.autograd.grad(scores.sum(), images, allow_unused=True)
        demand(gradient is not None, "its scores do not depend on the images as far as autograd can see")
        result: torch.Tensor = gradient
        return result

    def _checked_scores(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = self.called(images, prompts)
        demand(isinstance(scores, torch.Tensor), f"it returned {type(scores).__name__}, not a tensor")
        demand(
            scores.shape == (len(images),),
            f"it returned scores of shape {tuple(scores.shape)} for {len(images)} images, not ({len(images)},)",
        )
        result: torch.Tensor = scores
        return result


def require_readable(spec: RewardSpec, config: RewardConfig) -> None:
    """That the reward can read the prompts that it is to be checked with, where its config can tell.

    Raises:
        DraftError: as the config's `check_prompts`, with the advice to give others.
    """
    try:
        config.check_prompts(spec.small_prompts or PROMPTS)
    except DraftError as error:
        raise DraftError(
            error.what,
            where=error.where or f"reward {spec.kind!r}",
            next="give three prompts that it can read, each with --prompt, as `small_prompts` of its spec, or as "
            "`prompts` of the test's class",
        ) from error


def other_prompts(subject: Subject) -> tuple[str, ...]:
    """Prompts in the place of the subject's, with the columns of those."""
    before = subject.prompts
    texts = subject.rows[1:2] * 3 if subject.compares else (before[2], before[0], before[1])
    return tuple(PromptRow(text, getattr(row, "columns", {})) for text, row in zip(texts, before, strict=True))


def with_other(subject: Subject, column: str) -> tuple[str, ...]:
    """The subject's prompts with other values in a column."""
    rows: Any = subject.rows
    values = [row.columns[column] for row in rows]
    values = values[1:2] * 3 if subject.compares else [values[2], *values[:2]]
    kept: Any = subject.prompts
    return tuple(PromptRow(row, {**row.columns, column: value}) for row, value in zip(kept, values, strict=True))


def image_counts(subject: Subject) -> tuple[int, int]:
    """How many images the subject is given: the fewest that it takes, and three."""
    return (2, 3) if subject.compares else (1, 3)


def summed(subject: Subject, scores: torch.Tensor) -> torch.Tensor:
    """What a gradient of the sum of scores speaks of: each score (B,), or of a group their sum (1,)."""
    return scores.sum(0, keepdim=True) if subject.compares else scores


def demand(kept: bool, broken: str) -> None:
    """Raises `Violation` with the sentence `broken` unless the promise is kept."""
    if not kept:
        raise Violation(broken)
