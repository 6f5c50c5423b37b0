"""The motion that a prompt names. It imports no torch: prompts are checked before anything loads."""

from __future__ import annotations

import re

from draft_core.errors import RewardError

MOTION = re.compile(r"\bmoving (left|right|up|down)\b|\b(growing|shrinking)\b")


def motion_of(prompt: str, *, where: str) -> str:
    """The one motion that a prompt names.

    Arguments:
        where: who asks; it begins an error's sentence.

    Raises:
        RewardError: if it names none, or two.
    """
    found = {moving or sized for moving, sized in MOTION.findall(prompt.lower())}
    if len(found) == 1:
        return str(found.pop())
    raise RewardError(
        f"the prompt {prompt!r} names {'no motion' if not found else 'several motions'}",
        where=where,
        next="ask for one: moving left, right, up or down, growing, or shrinking; or set its direction",
    )
