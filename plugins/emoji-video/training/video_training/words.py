"""The words of moving emoji: "a red apple moving left" is a thing and a motion."""

from __future__ import annotations

import re

from draft_emoji.scene_words import STYLE, things

MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
ENDING = re.compile(rf"^(?P<thing>.+) (?P<motion>{'|'.join(MOTIONS)})$")
HIDDEN_EVERY = 3  # of the pairs of a thing and a motion


def phrase(thing: str, motion: str) -> str:
    """The words of a clip: of "a fox" and "growing" "a fox growing"."""
    return f"{thing} {motion}"


def read(prompt: str) -> tuple[str, str] | None:
    """Thing and motion of "[STYLE style, ]THING MOTION"; None where the prompt is nothing of the kind."""
    found = ENDING.match(STYLE.sub("", prompt.lower()).strip())
    return (found["thing"], found["motion"]) if found else None


def hidden(thing: str, motion: str) -> bool:
    """Whether no training clip shows this thing in this motion: two motions of six, which ones depends on the thing."""
    return (things().index(thing) + MOTIONS.index(motion)) % HIDDEN_EVERY == 0
