"""The rewards: images compared with reference images by a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import read_image
from draft_reward_similarity import SimilarityConfig, SimilarityPerPromptConfig, SimilarityToConfig
from draft_reward_similarity.dinov2 import Dinov2
from draft_reward_similarity.lpips import Lpips
from draft_reward_similarity.references import read_references, reference_of


class _Similarity(FrozenModule):
    """A frozen network, and the references as it takes them, (R, 3, side, side)."""

    references: Tensor

    def __init__(self, config: SimilarityToConfig, paths: Sequence[Path]) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.network = Dinov2(config) if config.model == "dinov2" else Lpips(config)
        self.register_buffer("references", torch.cat([self.network.prepare(read_image(path)) for path in paths]))
        self.requires_grad_(False).eval()

    def scored(self, images: Tensor, prompts: Sequence[str], places: Sequence[int]) -> Tensor:
        """Scores (B,) float32 of images against the references at these places."""
        images = checked_images(images, prompts, where=self.where)
        needed = sorted(set(places))
        with torch.autocast(images.device.type, enabled=False):
            features = self.network.features(self.network.prepare(images))
            with torch.no_grad():
                others = self.network.features(self.references[needed])
            order = torch.tensor([needed.index(place) for place in places], device=images.device)
            scores: Tensor = self.network.compare(features, [layer[order] for layer in others])
        return scores


class SimilarityReward(_Similarity):
    """How much an image is like one reference image, differentiable; higher is more alike.

    Raises:
        DraftError: if the network or the image is missing or does not fit.
    """

    def __init__(self, config: SimilarityConfig) -> None:
        super().__init__(config, [Path(config.reference)])

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        return self.scored(images, prompts, [0] * len(images))


class SimilarityPerPromptReward(_Similarity):
    """How much an image is like the reference image of its prompt, differentiable.

    Raises:
        DraftError: if the network, the map or an image is missing or does not fit.
    """

    def __init__(self, config: SimilarityPerPromptConfig) -> None:
        references = read_references(Path(config.references))
        paths = list(dict.fromkeys(references.values()))
        super().__init__(config, paths)
        self.file = config.references
        self.paths = references
        self.places = {path: place for place, path in enumerate(paths)}

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            DraftError: if images are not a floating-point batch of RGB images, or a prompt has no reference.
        """
        paths = [reference_of(prompt, self.paths, where=f"{self.where}, {self.file}") for prompt in prompts]
        return self.scored(images, prompts, [self.places[path] for path in paths])
