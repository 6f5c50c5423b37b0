"""The words of videos: which thing is to make which motions, and what each of those changes. It imports no torch."""

from __future__ import annotations

import re

from draft_core.errors import RewardError

# What a motion changes from the first frame to the last: the middle of the drawing, to the right and down, and the root
# of its area, all in sides of the frame; those of the videos that the model was trained on.
TRAVEL, GROWTH = 28 / 64, 0.3
CHANGES = {
    "moving left": (-TRAVEL, 0.0, 0.0),
    "moving right": (TRAVEL, 0.0, 0.0),
    "moving up": (0.0, -TRAVEL, 0.0),
    "moving down": (0.0, TRAVEL, 0.0),
    "growing": (0.0, 0.0, GROWTH),
    "shrinking": (0.0, 0.0, -GROWTH),
}
ANY = "|".join(CHANGES)
MOTION = re.compile(rf"\s+({ANY})(?:\s+and\s+({ANY}))?\s*$")


def words_of(prompt: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The thing and the one or two motions of "[STYLE style, ]a fox moving up and growing", in the order of CHANGES.

    Raises:
        RewardError: if the prompt does not end in a motion, or in two that cannot be had together.
    """
    found = MOTION.search(prompt.lower())
    if found is None:
        raise RewardError(
            f"the prompt {prompt!r} ends in no motion",
            where=where,
            next=f"end it in {', '.join(CHANGES)}, or in two of them with 'and'",
        )
    asked = {motion: axis(motion) for motion in CHANGES if motion in found.groups()}
    if len(set(asked.values())) < len([words for words in found.groups() if words]):
        raise RewardError(
            f"the prompt {prompt!r} asks for two motions along one line, {found[1]!r} and {found[2]!r}",
            where=where,
            next="name motions that a thing can make at once, as in 'moving up and growing'",
        )
    return prompt[: found.start()].strip(), tuple(asked)


def axis(motion: str) -> int:
    """Which of x, y and the root of the area a motion changes."""
    return next(number for number, change in enumerate(CHANGES[motion]) if change)
