"""The words of scenes: "a fox and a blue apple", two things side by side, each in its own colour or one asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from draft_core.errors import RewardError

THINGS = Path(__file__).parent / "scene-things.txt"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
NAMED = {*COLOURS, "black", "white", "grey", "gold", "golden", "blond"}  # a phrase with one of these is never dyed
STYLE = re.compile(r"^\s*(noto|3d|flat) style\s*,\s*")


def things() -> list[str]:
    """The phrases of all things that scenes are made of."""
    lines = THINGS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


@dataclass(frozen=True)
class Asked:
    """One thing that a prompt asks for: the phrase that names it, and the colour, "" for its own."""

    thing: str
    colour: str = ""


def phrase(words: str, colour: str = "") -> str:
    """The phrase with a colour in it: of "an owl" and "blue" "a blue owl"; words without an article get none."""
    if not colour:
        return words
    article, _, rest = words.partition(" ")
    if article not in ("a", "an"):
        return f"{colour} {words}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {rest}"


def dyeable(words: str) -> bool:
    """Whether the phrase names no colour already."""
    return not NAMED & set(words.split())


class SceneWords:
    """Reads prompts about pairs of the named things."""

    def __init__(self, things: Iterable[str]) -> None:
        things = list(things)
        self.count = len(things)
        self.meanings = {
            phrase(thing, colour): Asked(thing, colour)
            for thing in things
            for colour in ("", *COLOURS)
            if not colour or dyeable(thing)
        }

    def read(self, prompt: str) -> tuple[Asked, Asked] | None:
        """The two things of "[STYLE style, ]THING and THING", in order; None if the prompt is nothing of the kind."""
        words = STYLE.sub("", prompt.lower()).strip()
        for cut in re.finditer(" and ", words):
            left, right = self.meanings.get(words[: cut.start()]), self.meanings.get(words[cut.end() :])
            if left and right:
                return left, right
        return None

    def asked(self, prompt: str, *, where: str) -> tuple[Asked, Asked]:
        """The same two things.

        Raises:
            RewardError: if the prompt does not ask for two.
        """
        found = self.read(prompt)
        if found is None:
            raise RewardError(
                f"the prompt {prompt!r} does not ask for two of its {self.count} things",
                where=where,
                next="ask in the words of scenes-train: 'a fox and a blue apple', 'flat style, a fox and an owl'",
            )
        return found
