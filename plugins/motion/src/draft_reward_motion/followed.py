"""Whether a thing moves as asked for, by hard edges: to judge by, and built otherwise than what is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_videos
from draft_reward_motion import MotionFollowedConfig
from draft_reward_motion.reward import colour
from draft_reward_motion.words import axes_of

STRAY = 0.02  # share of the thing's pixels that are left out at each of its four sides
ASIDE = 0.5  # the largest movement across, or change of size, as a share of the movement asked for
STEADY = 1.5  # the largest factor by which a thing that moves may grow or shrink
EMPTY = 0.002  # share of the frame; a frame with less shows no thing


class MotionFollowed(FrozenModule):
    """1 for each video whose thing moves as its prompt asks, 0 for any other.

    The thing is what differs from the background by more than `contrast`, root mean square over the channels. Its box
    leaves out 2 % of these pixels at each side. A movement is followed if the box's middle gains `least` percent of the
    frame's shorter side or more in that direction from the first frame to the last, at most half of that across, and
    the box's side changes by a factor of 1.5 at most. Growing is followed if the box's side gains a factor of
    `least_growth`, and its middle moves by no more than half of what the side gains. A video with an empty frame is
    not one that follows.
    """

    takes = "video"

    def __init__(self, config: MotionFollowedConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """0 or 1 (B,) float32 of videos (B, F, 3, H, W) in [0, 1] of two frames or more.

        Raises:
            RewardError: if they are no such batch, or a prompt names no motion.
        """
        where = "reward 'motion-followed'"
        videos = checked_videos(videos, prompts, where=where)
        axes = axes_of(self.config.direction, prompts, videos, where=where)
        distance = (videos - colour(self.config.background, videos)).square().mean(2).sqrt()
        things = distance > self.config.contrast  # (B, F, H, W)
        short = min(things.shape[-2:])
        (left, right), (top, bottom) = (_ends(things.sum(dim)) for dim in (2, 3))
        middles = torch.stack([left + right, top + bottom], 2) / 2 / short
        sides = ((right - left) * (bottom - top)).clamp(min=1).sqrt() / short
        gained, growth = middles[:, -1] - middles[:, 0], sides[:, -1] / sides[:, 0]
        moves = (gained * axes[:, :2]).sum(1)
        across = (gained * axes[:, :2].flip(1)).sum(1).abs()
        moved = (moves >= self.config.least / 100) & (across <= ASIDE * moves)
        moved &= (growth <= STEADY) & (growth >= 1 / STEADY)
        factor = torch.where(axes[:, 2] > 0, growth, 1 / growth)
        stays = gained.square().sum(1).sqrt() <= ASIDE * (sides[:, -1] - sides[:, 0]).abs()
        sized = (factor >= self.config.least_growth) & stays
        shown = (things.float().mean((2, 3)) >= EMPTY).all(1)
        return (torch.where(axes[:, 2] == 0, moved, sized) & shown).float()


def _ends(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last place (B, F), in pixels, of what lies along a line (B, F, L) of counts, strays left out."""
    total = counts.sum(2, keepdim=True)
    gone = counts.cumsum(2) / total.clamp(min=1)
    first = (gone <= STRAY).sum(2)
    last = (gone < 1 - STRAY).sum(2) + 1
    return first.float(), last.float()
