"""The contract of rewards, and the letters that stand for sizes in docstrings.

B  prompts in a batch          T  sampler steps              n  re-noisings per sample (DRaFT-LV)
N  images in a rollout, B (1 + n) times the images per prompt; F  frames of a video
H, W  image size in pixels     C, h, w  latent channels and size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

if TYPE_CHECKING:
    from typing_extensions import Self


class Reward(Protocol):
    """A scorer: images and their prompts in, one score for each image out. Higher is better.

    Frozen, in eval mode, deterministic; no score depends on the other images of the batch, and the
    inputs are left unchanged. A differentiable reward gives every image a gradient.
    """

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores, float32 (N,).

        Arguments:
            images: float (N, 3, H, W) in [0, 1], or whole videos, (N, F, 3, H, W), where the reward `takes` video;
                values slightly outside must score finite, and other ranges such as [-1, 1] and [0, 255] be refused,
                which `draft_core.rewards.checked_images` and `checked_videos` do.
            prompts: N strings.

        A reward whose spec declares `columns` is called with a third argument, `columns`: name -> a list of N values
        beside the prompts, texts, floats or image tensors (3, H, W) in [0, 1], as the spec says.
        """
        ...


class FrozenModule(torch.nn.Module):
    """A module that is in eval mode and stays there, whatever its parent does: the base for rewards.

    Dropout or batch statistics that come alive under a parent's `train()` turn scores into noise. Weights
    that a subclass loads it freezes itself, with `requires_grad_(False)`.

    Attributes:
        takes: "video" of a reward that sees whole videos, as its `RewardSpec` says too; any other sees single images,
            and of a video each frame.
    """

    takes: ClassVar[Literal["image", "video"]] = "image"

    def __init__(self) -> None:
        super().__init__()
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever `mode` says."""
        return super().train(False)
