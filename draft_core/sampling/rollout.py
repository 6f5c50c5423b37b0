"""What one sampling run made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Rollout:
    """What one sampling run made, with gradient where the plan asked for it.

    Arguments:
        images: (N, 3, H, W) in [0, 1], (N, F, 3, H, W) for video. The first `sample_count` are the
            samples, as the plain pipeline call gives them; then the re-noised ones, one batch after another.
        prompts: the prompt of each image, N strings.
        sample_count: how many of the images are samples.
        divergence: mean squared difference between the predictions of the tuned and the base denoiser over the recorded
            calls, with gradient, (); None unless the sampler was given a base model.
    """

    images: torch.Tensor
    prompts: tuple[str, ...]
    sample_count: int
    divergence: torch.Tensor | None = None

    @property
    def samples(self) -> torch.Tensor:
        """The samples alone, (sample_count, 3, H, W)."""
        return self.images[: self.sample_count]
