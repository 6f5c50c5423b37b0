"""What motion a prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.errors import RewardError

MOTION = re.compile(r"\bmoving (left|right|up|down)\b|\b(growing|shrinking)\b")
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
    names = [_named(prompt, where) if direction == "prompt" else direction for prompt in prompts]
    return torch.tensor([AXES[name] for name in names], dtype=like.dtype, device=like.device)


def _named(prompt: str, where: str) -> str:
    found = {moving or sized for moving, sized in MOTION.findall(prompt.lower())}
    if len(found) == 1:
        return str(found.pop())
    raise RewardError(
        f"the prompt {prompt!r} names {'no motion' if not found else 'several motions'}",
        where=where,
        next="ask for one: moving left, right, up or down, growing, or shrinking; or set its direction",
    )
