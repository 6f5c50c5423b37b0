"""Asks about a collage: yes-or-no questions of six kinds, to be answered with yes as often as with no, and others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from draft_emoji.scene_words import COLOURS, dyeable, phrase

from .. import captions, pictures
from .collages import SIDE_OF, Album, Shown, pick

NUMBERS = ("one", "two", "three", "four")
HINT = " Answer Yes or No."
HINTED = 0.15  # share of the questions that end with it
NEAR = 8  # concepts are listed by group: those so close in number are often of the same sort


@dataclass(frozen=True)
class Question:
    """A question of a kind and its answer, in words."""

    kind: str
    text: str
    answer: str


class Asker:
    """Asks about the collages of an album.

    Things are asked for by the phrases of `meta`'s concepts; pictures without a concept have no words.
    """

    def __init__(self, album: Album) -> None:
        self.album, self.meta = album, album.meta
        self.phrases = {p.concept: p.phrase for p in self.meta if p.concept >= 0}
        self.numbers = sorted(self.phrases)

    def ask(self, kind: str, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> Question | None:
        """A question of the kind about the collage with that answer; None where it has no such."""
        text = KINDS[kind](self, things, yes, generator)
        if text is None:
            return None
        hinted = float(torch.rand((), generator=generator)) < HINTED
        return Question(kind, text + HINT * hinted, "yes" if yes else "no")

    def thing(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether a thing is shown."""
        shown = [self.meta[t.index].concept for t in things]
        if min(shown) < 0:
            return None
        number = shown[pick(len(shown), generator)] if yes else self._stranger(shown, generator)
        words = self.phrases[number]
        forms = ("Is there {}?", "Does this show {}?") if len(things) > 1 else ("Is it {}?", "Does this show {}?")
        return forms[pick(2, generator)].format(words)

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
        return f"Is it in {self._style(things, yes, generator)}?"

    def count(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether it is so many things."""
        others = [n for n in range(1, 5) if n != len(things)]
        number = len(things) if yes else others[pick(3, generator)]
        if number == 1:
            return ("Is it one thing?", "Is there one thing?")[pick(2, generator)]
        return f"Are there {NUMBERS[number - 1]} things?"

    def place(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Where it stands; of two, where a named one does."""
        chosen = things[pick(len(things), generator)]
        if not chosen.place:
            return None
        others = [t.place for t in things if t is not chosen] or [p for p in SIDE_OF if p != chosen.place]
        place = chosen.place if yes else others[pick(len(others), generator)]
        where = f"at the {place}" if place in ("top", "bottom") else f"on the {place}"
        if len(things) == 1:
            return f"Is it {where}?"
        words = self.phrases.get(self.meta[chosen.index].concept)
        return None if words is None else f"Is there {words} {where}?"

    def prompt(self, things: Sequence[Shown], yes: bool, generator: torch.Generator) -> str | None:
        """Whether it is what a prompt says: style, thing and colour, of which one is wrong if it is not."""
        concept = self.meta[things[0].index].concept
        if len(things) > 1 or concept < 0:
            return None
        styled = pick(2, generator) or not things[0].colour
        wrong = None if yes else (["thing"] + ["style"] * bool(styled) + ["colour"] * bool(things[0].colour))
        false = wrong[pick(len(wrong), generator)] if wrong else ""
        colour = things[0].colour
        if false == "colour":
            others = [c for c in COLOURS if c != colour]
            colour = others[pick(len(others), generator)]
        if false == "thing":
            concept = self._stranger([concept], generator, dyed=bool(colour))
        words = phrase(self.phrases[concept], colour)
        if styled:
            words = f"{self._style(things, false != 'style', generator)}, {words}"
        return (f"Is it {words}?", f"Does this show {words}?")[pick(2, generator)]

    def _stranger(self, shown: Sequence[int], generator: torch.Generator, dyed: bool = False) -> int:
        """The number of a concept that is not shown, every other time one of a similar sort."""
        while True:
            if pick(2, generator):
                number = shown[0] + pick(2 * NEAR + 1, generator) - NEAR
            else:
                number = self.numbers[pick(len(self.numbers), generator)]
            if number in self.phrases and number not in shown and (not dyed or dyeable(self.phrases[number])):
                return number

    def _style(self, things: Sequence[Shown], right: bool, generator: torch.Generator) -> str:
        own = self.meta[things[0].index].style
        others = [s for s in pictures.STYLES if s != own]
        return captions.styled(own if right else others[pick(len(others), generator)])

    def open(self, things: Sequence[Shown], generator: torch.Generator) -> Question:
        """A question that is answered in words: they teach much more at once than a yes does."""
        style, number = self.meta[things[0].index].style, NUMBERS[len(things) - 1]
        options = [("What style is it?", captions.styled(style)), ("How many things are there?", number)]
        concept = self.meta[things[0].index].concept
        if len(things) == 1:
            if concept >= 0:
                options = [("What is it?", self.phrases[concept])] * 4 + options
            if things[0].colour:
                options += [("What colour is it?", things[0].colour)] * 2
        for thing in things:
            words = self.phrases.get(self.meta[thing.index].concept)
            if len(things) == 2 and words is not None:
                options += [(f"What is at {thing.place}?", words)] * 2
        text, answer = options[pick(len(options), generator)]
        return Question("open", text, answer)


KINDS: dict[str, Callable[[Asker, Sequence[Shown], bool, torch.Generator], str | None]] = {
    "thing": Asker.thing,
    "colour": Asker.colour,
    "style": Asker.style,
    "count": Asker.count,
    "place": Asker.place,
    "prompt": Asker.prompt,
}


def all_words() -> list[str]:
    """Texts with every word that a question or an answer can have."""
    frames = "Is it one thing? Is there a thing in an on the left right at top bottom Does this show, What style colour"
    fixed = f"{frames} How many things are there? {HINT} USER: ASSISTANT: yes no . ' {' '.join(NUMBERS)}"
    concepts = [words for _, words, _ in pictures.read_concepts().values()]
    return [fixed, *COLOURS, *map(captions.styled, pictures.STYLES), *concepts]
