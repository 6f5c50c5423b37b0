"""A small reward that resizes, and its reference on Pillow, for the tests of the comparison between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from draft_core.plugin import RewardConfig, RewardSpec
from draft_core.rewards.images import resize_like_pil
from draft_core.rewards.protocol import FrozenModule

SIDE = 16


class ResizedConfig(RewardConfig):
    """How busy an image is at 16 pixels."""

    kind: Literal["resized"] = "resized"
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    scale: float = 1.0


class ResizedPromptConfig(ResizedConfig):
    """The same, and how long its prompt is."""

    kind: Literal["resized-prompt"] = "resized-prompt"  # type: ignore[assignment]


class Resized(FrozenModule):
    """Mean square of the resized image, times the scale, plus a hundredth of the prompt's length if that counts."""

    def __init__(self, config: ResizedConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        small = resize_like_pil(images.float(), SIDE, SIDE, filter=self.config.filter)
        scores = self.config.scale * small.square().mean(dim=(1, 2, 3))
        if self.config.kind == "resized-prompt":
            scores = scores + torch.tensor([len(prompt) / 100 for prompt in prompts])
        return scores


def reference(reward: Resized, config: ResizedConfig) -> Callable[[list[Image.Image], list[str]], torch.Tensor]:
    """Always bicubic."""

    def score(images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255 for image in images]
        scores = config.scale * torch.tensor([float(np.square(levels).mean()) for levels in small])
        if config.kind == "resized-prompt":
            scores = scores + torch.tensor([len(prompt) / 100 for prompt in prompts])
        return scores

    return score


def itself(reward: Resized, config: ResizedConfig) -> Callable[[list[Image.Image], list[str]], torch.Tensor]:
    """The reward over again."""

    def score(images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        levels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]
        return torch.cat([reward(each, [prompt]) for each, prompt in zip(levels, prompts, strict=True)])

    return score


def flat(reward: Resized, config: ResizedConfig) -> Callable[[list[Image.Image], list[str]], torch.Tensor]:
    """The same score for all."""
    return lambda images, prompts: torch.full((len(images),), 0.25)


def spec(config: type[ResizedConfig] = ResizedConfig, **more: Any) -> RewardSpec:
    settings = {"reference": "tests.support.resized:reference", "tolerance": 1e-3, **more}
    return RewardSpec(
        kind=config.model_fields["kind"].default,
        summary="how bright the small image is",
        config=config,
        factory="tests.support.resized:Resized",
        unit="level",
        code_license="Apache-2.0",
        needs_prompt=config is ResizedPromptConfig,
        **settings,
    )
