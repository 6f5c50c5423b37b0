"""The rewards: images compared with reference images by a frozen network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import read_image
from draft_reward_similarity import SimilarityConfig, SimilarityToConfig
from draft_reward_similarity.dinov2 import Dinov2
from draft_reward_similarity.lpips import Lpips


class _Similarity(FrozenModule):
    """A frozen network that compares images with others."""

    def __init__(self, config: SimilarityToConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.network = Dinov2(config) if config.model == "dinov2" else Lpips(config)
        self.requires_grad_(False).eval()

    def scored(self, images: Tensor, prompts: Sequence[str], references: Tensor) -> Tensor:
        """Scores (B,) float32 of images against references (B, 3, side, side), or one, as the network takes them."""
        images = checked_images(images, prompts, where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            features = self.network.features(self.network.prepare(images))
            with torch.no_grad():
                others = self.network.features(references)
            scores: Tensor = self.network.compare(
                features, [layer.expand_as(of) for layer, of in zip(others, features, strict=True)]
            )
        return scores


class SimilarityReward(_Similarity):
    """How much an image is like one reference image, differentiable; higher is more alike.

    Raises:
        DraftError: if the network or the image is missing or does not fit.
    """

    reference: Tensor

    def __init__(self, config: SimilarityConfig) -> None:
        super().__init__(config)
        self.register_buffer("reference", self.network.prepare(read_image(Path(config.reference))))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        return self.scored(images, prompts, self.reference)


class SimilarityPerPromptReward(_Similarity):
    """How much an image is like the reference image in its prompt's row, differentiable.

    Raises:
        DraftError: if the network is missing or does not fit.
    """

    def forward(self, images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1].

        Arguments:
            columns: "reference" -> B images (3, H', W') in [0, 1], each of a size of its own.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        with torch.no_grad():
            references = [self.network.prepare(image.float()[None]) for image in columns["reference"]]
        return self.scored(images, prompts, torch.cat(references))
