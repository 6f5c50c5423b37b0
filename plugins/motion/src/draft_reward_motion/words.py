"""What motion a prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draft_reward_motion.asked import motion_of

AXES = {  # across and down the frame, and in size
    "left": (-1.0, 0.0, 0.0),
    "right": (1.0, 0.0, 0.0),
    "up": (0.0, -1.0, 0.0),
    "down": (0.0, 1.0, 0.0),
    "growing": (0.0, 0.0, 1.0),
    "shrinking": (0.0, 0.0, -1.0),
}


def axes_of(direction: str, prompts: Sequence[str], like: Tensor, *, where: str) -> Tensor:
    """The motion asked for by each of B prompts as a unit vector (B, 3): across the frame, down it, and in size.

    Arguments:
        direction: one of `AXES` for all, or "prompt".
        like: on whose device, in whose type.
        where: who asks; it begins an error's sentence.

    Raises:
        RewardError: if a prompt names no motion, or two.
    """
    names = [motion_of(prompt, where=where) if direction == "prompt" else direction for prompt in prompts]
    return torch.tensor([AXES[name] for name in names], dtype=like.dtype, device=like.device)
