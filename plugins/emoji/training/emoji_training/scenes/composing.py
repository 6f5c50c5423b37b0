"""Makes scenes out of the concepts' pictures: one thing or two side by side, some of them dyed in a colour.

"a fox and a blue apple": the first thing stands left, the second right. A program made them, so a program knows what
each shows; nothing is drawn by a model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from draft_emoji.scene_words import COLOURS, dyeable, phrase, things
from PIL import Image
from scipy import ndimage
from torch import Tensor

from .. import captions, pictures
from ..pictures import Picture
from ..vae import to_tensor

PAINTS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (60, 170, 70),
    "blue": (50, 110, 225),
    "purple": (140, 70, 190),
    "pink": (250, 130, 190),
    "brown": (140, 90, 50),
}
PAIRS, DYED, STYLED, EMPTY = 0.6, 0.35, 0.35, 0.1  # shares: of scenes, of things, of captions, of captions
SIDES = (27, 36)  # of one thing of two, in pixels
WHITE = 250  # a level from which a pixel can be background
HIDDEN_EVERY = 5  # of pairs


@dataclass(frozen=True)
class Thing:
    """A concept's picture, by its index, and the colour that it is dyed in, "" for its own."""

    index: int
    colour: str = ""


@dataclass(frozen=True)
class Scene:
    """One thing, or two from left to right, and the caption."""

    things: tuple[Thing, ...]
    caption: str


def hidden(left: int, right: int) -> bool:
    """Whether two concepts, by number, never stand in one training image: a fifth of all pairs."""
    return (left + right) % HIDDEN_EVERY == 0


class Composer:
    """Draws random scenes of the things' pictures, of `images` (uint8 (N, 64, 64, 3)) and what is known of them.

    `without` are the indices of pictures to leave out.
    """

    def __init__(self, images: np.ndarray, meta: Sequence[Picture], without: Collection[int] = ()) -> None:
        self.images, self.meta = images, meta
        known = set(things())
        self.choices = [i for i, p in enumerate(meta) if p.concept >= 0 and p.phrase in known and i not in without]
        self.by_style = {s: [i for i in self.choices if meta[i].style == s] for s in pictures.STYLES}
        self.shapes: dict[int, np.ndarray] = {}

    def scene(self, generator: torch.Generator, pair: float = PAIRS, unseen: bool = False) -> Scene:
        """A random scene; the things of a pair share a style, and no pair is a `hidden` one, or with `unseen` each."""
        draw = float(torch.rand((), generator=generator))
        chosen = [self.choices[int(torch.randint(len(self.choices), (), generator=generator))]]
        partners = self.partners(chosen[0], unseen) if draw < pair else []
        if partners:
            chosen.append(partners[int(torch.randint(len(partners), (), generator=generator))])
        things = tuple(Thing(i, self.colour(i, generator)) for i in chosen)
        return Scene(things, self.caption(things, generator))

    def partners(self, index: int, unseen: bool) -> list[int]:
        """The pictures of other concepts in the style of this one with which it makes an allowed pair."""
        own = self.meta[index]
        return [
            i
            for i in self.by_style[own.style]
            if self.meta[i].concept != own.concept and hidden(own.concept, self.meta[i].concept) == unseen
        ]

    def colour(self, index: int, generator: torch.Generator) -> str:
        """A random colour for some pictures, "" for most."""
        draw = float(torch.rand((), generator=generator))
        which = int(torch.randint(len(COLOURS), (), generator=generator))
        return COLOURS[which] if draw < DYED and dyeable(self.meta[index].phrase) else ""

    def caption(self, things: Sequence[Thing], generator: torch.Generator, empty: float = EMPTY) -> str:
        """ "flat style, a fox and a blue apple": the style at random, sometimes nothing at all."""
        draw = torch.rand(2, generator=generator).tolist()
        if draw[0] < empty:
            return ""
        words = self.words(things)
        return f"{captions.styled(self.meta[things[0].index].style)}, {words}" if draw[1] < STYLED else words

    def words(self, things: Sequence[Thing]) -> str:
        """ "a fox and a blue apple"."""
        return " and ".join(phrase(self.meta[t.index].phrase, t.colour) for t in things)

    def image(self, things: Sequence[Thing], generator: torch.Generator) -> np.ndarray:
        """uint8 (64, 64, 3): one thing fills the image; two stand side by side, each a little off its place."""
        if len(things) == 1:
            return self.dyed(things[0])
        canvas = np.full((pictures.SIZE, pictures.SIZE, 3), 255, dtype=np.uint8)
        low, high = SIDES
        for number, thing in enumerate(things):
            side = int(torch.randint(low, high + 1, (), generator=generator))
            tile = np.asarray(Image.fromarray(self.dyed(thing)).resize((side, side), Image.Resampling.LANCZOS))
            dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
            left = min(max(16 + 32 * number + dx - side // 2, 0), pictures.SIZE - side)
            top = 32 + 2 * dy - side // 2
            part = canvas[top : top + side, left : left + side]
            np.minimum(part, tile, out=part)
        return canvas

    def dyed(self, thing: Thing) -> np.ndarray:
        """The picture in shades of its colour, as light and dark as before; its white parts get a tint."""
        own = self.images[thing.index]
        if not thing.colour:
            return own
        shape = self.shape(thing.index)[..., None]
        full = np.array(PAINTS[thing.colour], dtype=np.float32)
        light = (own @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None] / 255
        dark = 0.25 * full + (0.75 * full) * np.minimum(light / 0.55, 1)
        pale = full + (0.6 * (255 - full)) * np.maximum((light - 0.55) / 0.45, 0)
        found = np.where(light < 0.55, dark, pale)
        return np.where(shape, found, own).round().astype(np.uint8)

    def shape(self, index: int) -> np.ndarray:
        """Bool (64, 64): what is no background, which is the white that reaches a corner."""
        if index not in self.shapes:
            regions, _ = ndimage.label(self.images[index].min(-1) >= WHITE)  # 0 is what is no white
            corners = regions[[0, 0, -1, -1], [0, -1, 0, -1]]
            self.shapes[index] = ~np.isin(regions, corners[corners > 0])
        return self.shapes[index]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[Scene]]:
        """Images (count, 3, 64, 64) in [-1, 1] of random scenes, and those."""
        scenes = [self.scene(generator) for _ in range(count)]
        return to_tensor(np.stack([self.image(s.things, generator) for s in scenes])), scenes
