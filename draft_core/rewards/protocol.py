"""The contract of rewards, and the letters that stand for sizes in docstrings.

B  prompts in a batch          T  sampler steps              n  re-noisings per sample (DRaFT-LV)
N  images in a rollout, B (1 + n) times the images per prompt; F  frames of a video
H, W  image size in pixels     C, h, w  latent channels and size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch

Takes = Literal["image", "video", "any"]

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


@runtime_checkable
class RewardWithComponents(Protocol):
    """A reward whose score is made of named parts, which evaluations store and the report shows beside the score.

    The name of a part says what it is, such as "physics"; its values may be NaN where it does not apply to an image.
    """

    def score_with_components(
        self, images: torch.Tensor, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The scores that the call gives, (N,), and by the name of each part its values, float32 (N,).

        The names must be the same at every call.

        Arguments:
            images: as in its call; of a reward that reads columns, those follow as there.
            prompts: N strings.
        """
        ...


def takes(reward: Any) -> Takes:
    """What a reward is given, as its attribute `takes` says; single images where it has none."""
    taken: Takes = getattr(reward, "takes", "image")
    return taken


def with_components(
    reward: Any, images: torch.Tensor, prompts: Sequence[str], **beside: Any
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """A reward's scores (N,) and their parts by name; no parts if it tells none."""
    if isinstance(reward, RewardWithComponents):
        return reward.score_with_components(images, prompts, **beside)
    return reward(images, prompts, **beside), {}


class FrozenModule(torch.nn.Module):
    """A module that is in eval mode and stays there, whatever its parent does: the base for rewards.

    Dropout or batch statistics that come alive under a parent's `train()` turn scores into noise. Weights
    that a subclass loads it freezes itself, with `requires_grad_(False)`.

    Attributes:
        takes: as its `RewardSpec` says: "image", and of a video each frame; "video", whole videos alone; or "any",
            whole videos of a video model and images of another.
    """

    takes: Takes = "image"

    def __init__(self) -> None:
        super().__init__()
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever `mode` says."""
        return super().train(False)
