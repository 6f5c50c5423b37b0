"""The rewards with a gradient: how far a thing moves as asked for, and how little a video flickers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_videos
from draft_reward_motion import FlickerConfig, MotionConfig
from draft_reward_motion.words import axes_of

TINY = 1e-6  # of a frame; an empty one has its centre in the middle


class MotionReward(FrozenModule):
    """How far a thing before a plain background moves as asked for, in percent of the frame's shorter side.

    Every pixel has a weight, d^2 / (d^2 + contrast^2) for the root mean square distance d of its colour to the
    background. A frame's centre is the weighted mean of its pixels' places, its size the square root of the weights'
    sum. A straight line is fitted to the centres and sizes by least squares. The score is what the line gains from the
    first frame to the last in the direction asked for, minus what it gains aside, minus how far the frames are from it:

        score = 100 (a - |b| - r)

    Where the thing shall move, b is the movement across and r the mean distance of the centres, in x plus in y; where
    it shall grow or shrink, b is the length of the movement, and r the mean distance of the sizes.
    """

    takes = "video"

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of videos (B, F, 3, H, W) in [0, 1] of two frames or more.

        Raises:
            RewardError: if they are no such batch, or a prompt names no motion.
        """
        where = "reward 'motion'"
        videos = checked_videos(videos, prompts, where=where)
        with torch.autocast(videos.device.type, enabled=False):
            places = track(videos, self.config.background, self.config.contrast)
            axes = axes_of(self.config.direction, prompts, places, where=where)
            gained, fitted = line(places)
            along = (gained * axes).sum(1)
            across = (gained[:, :2] * axes[:, :2].flip(1)).sum(1).abs()
            moves = axes[:, 2] == 0  # else it grows or shrinks
            aside = torch.where(moves, across, length(gained[:, :2]))
            off = (places - fitted).abs().mean(1)
            off = torch.where(moves, off[:, :2].sum(1), off[:, 2])
            return 100 * (along - aside - off)


class FlickerReward(FrozenModule):
    """Minus the mean size of the second difference of three frames in a row, in percent of white.

    |x(t + 1) - 2 x(t) + x(t - 1)|, over all pixels, channels and inner frames. What stands still, or changes at an even
    pace in every pixel, has 0; frames that alternate between black and white have -200.
    """

    takes = "video"

    def __init__(self, config: FlickerConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of videos (B, F, 3, H, W) in [0, 1] of three frames or more; prompts are not read.

        Raises:
            RewardError: if they are no such batch.
        """
        videos = checked_videos(videos, prompts, where="reward 'flicker'", frames=3)
        return -100 * videos.diff(n=2, dim=1).abs().flatten(1).mean(1)


def track(videos: Tensor, background: str, contrast: float) -> Tensor:
    """Centre and size in every frame of videos (B, F, 3, H, W): (B, F, 3) in shares of the frame's shorter side.

    Across from the middle, down from the middle, and the side of a square as large as the thing.

    Arguments:
        background: "#rrggbb".
        contrast: as the reward's.
    """
    distance = (videos - colour(background, videos)).square().mean(2)  # (B, F, H, W), squared
    weights = distance / (distance + contrast**2)
    return centres(weights)


def centres(weights: Tensor) -> Tensor:
    """Centre and size, (B, F, 3) as `track` gives them, of weights (B, F, H, W) from 0 to 1."""
    height, width = weights.shape[-2:]
    short = min(height, width)
    down = (torch.arange(height, device=weights.device) + 0.5 - height / 2) / short
    across = (torch.arange(width, device=weights.device) + 0.5 - width / 2) / short
    mass = weights.sum((2, 3))
    whole = mass + TINY * height * width
    x = (weights.sum(2) * across).sum(2) / whole
    y = (weights.sum(3) * down).sum(2) / whole
    return torch.stack([x, y, whole.sqrt() / short], dim=2)


def line(places: Tensor) -> tuple[Tensor, Tensor]:
    """What a least squares line through places (B, F, D) gains from the first frame to the last, (B, D), and itself."""
    frames = places.shape[1]
    time = torch.linspace(-0.5, 0.5, frames, dtype=places.dtype, device=places.device)[:, None]
    gained = (places * time).sum(1) / time.square().sum()
    return gained, places.mean(1, keepdim=True) + gained[:, None] * time


def length(movement: Tensor) -> Tensor:
    """The length (B,) of movements (B, 2); its gradient is finite at rest."""
    return (movement.square().sum(1) + TINY**2).sqrt() - TINY


def colour(text: str, like: Tensor) -> Tensor:
    """The levels (3, 1, 1) of "#rrggbb"."""
    levels = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return torch.tensor(levels, dtype=like.dtype, device=like.device)[:, None, None]
