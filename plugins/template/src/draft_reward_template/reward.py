"""The reward itself: images in, one score for each out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draft_core.rewards import FrozenModule, checked_images
from draft_reward_template import TemplateConfig


class TemplateReward(FrozenModule):
    """Mean red minus mean blue: replace this by what you want images to be."""

    def __init__(self, config: TemplateConfig) -> None:
        super().__init__()
        self.strength = config.strength

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; higher is better."""
        images = checked_images(images, prompts, where="reward 'template'")
        red, _, blue = images.mean(dim=(-2, -1)).unbind(dim=1)
        return self.strength * (red - blue)
