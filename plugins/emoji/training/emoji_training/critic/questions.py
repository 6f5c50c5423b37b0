"""Asks about a collage: yes-or-no questions of four kinds, to be answered with yes as often as with no, and others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from draft_emoji.scene_words import COLOURS

from .. import captions, pictures
from ..video.moving import MOTIONS
from .collages import SIDE_OF, Album, Shown, pick

NUMBERS = ("one", "two", "three", "four")
HINT = " Answer Yes or No."
HINTED = 0.15  # share of the questions that end with it


@dataclass(frozen=True)
class Question:
    """A question of a kind and its answer, in words."""

    kind: str
    text: str
    answer: str


class Asker:
    """Asks about the collages of an album. What the things are is never asked: those words come later."""

    def __init__(self, album: Album) -> None:
        self.album, self.meta = album, album.meta

    def ask(self, kind: str, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> Question | None:
        """A question of the kind about the collage with that answer; None where it has no such."""
        text = KINDS[kind](self, things, yes, generator)
        if text is None:
            return None
        hinted = float(torch.rand((), generator=generator)) < HINTED
        return Question(kind, text + HINT * hinted, "yes" if yes else "no")

    def colour(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether it, or any of several, has a colour."""
        answers = {c: [self.album.has_colour(t, c) for t in things] for c in COLOURS}
        fits = [c for c, a in answers.items() if (True in a if yes else not any(x is not False for x in a))]
        if not fits:
            return None
        colour = fits[pick(len(fits), generator)]
        return f"Is it {colour}?" if len(things) == 1 else f"Is there a thing in {colour}?"

    def style(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether it is drawn in a style."""
        own = self.meta[things[0].index].style
        others = [s for s in pictures.STYLES if s != own]
        return f"Is it in {captions.styled(own if yes else others[pick(len(others), generator)])}?"

    def count(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether it is so many things."""
        others = [n for n in range(1, 5) if n != len(things)]
        number = len(things) if yes else others[pick(3, generator)]
        return "Is it one thing?" if number == 1 else f"Are there {NUMBERS[number - 1]} things?"

    def place(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Where a small thing stands."""
        own = things[0].place
        if len(things) > 1 or not own:
            return None
        others = [place for place in SIDE_OF if place != own]
        return f"Is it {_at(own if yes else others[pick(3, generator)])}?"

    def open(
        self, things: Sequence[Shown], generator: torch.Generator, kinds: Collection[str] | None = None
    ) -> Question:
        """A question, of these kinds or any, that is answered in words: they teach more at once than a yes does."""
        style = self.meta[things[0].index].style
        options = [
            ("style", "What style is it?", captions.styled(style)),
            ("count", "How many things are there?", NUMBERS[len(things) - 1]),
        ]
        if len(things) == 1 and things[0].colour:
            options.append(("colour", "What colour is it?", things[0].colour))
        if len(things) == 1 and things[0].place:
            options.append(("place", "Where is it?", _at(things[0].place)))
        options = [option for option in options if kinds is None or option[0] in kinds]
        return Question("open", *options[pick(len(options), generator)][1:])


def _at(place: str) -> str:
    return f"at the {place}" if place in ("top", "bottom") else f"on the {place}"


KINDS: dict[str, Callable[[Asker, Sequence[Shown], bool, torch.Generator], str | None]] = {
    "colour": Asker.colour,
    "style": Asker.style,
    "count": Asker.count,
    "place": Asker.place,
}


WORDS = {  # every word of a kind's questions, and of the open answers beside them
    "colour": f"Is it Is there a thing in What colour is it? {' '.join(COLOURS)}",
    "style": f"Is it in What style is it? {' '.join(map(captions.styled, pictures.STYLES))}",
    "count": f"Is it one thing? Are there How many things are there? {' '.join(NUMBERS)}",
    "place": "Is it on the left right at the top bottom Where is it?",
    "motion": f"How is it moving? Is it {' '.join(MOTIONS)} still?",
}


def all_words(kinds: Collection[str] = tuple(KINDS)) -> list[str]:
    """Texts with every word that a question of these kinds or an answer can have."""
    return [f"USER: ASSISTANT: yes no {HINT}", *(WORDS[kind] for kind in kinds)]
