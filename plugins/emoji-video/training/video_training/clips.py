"""Draws the training clips: an emoji that moves over white, or grows, or shrinks, and the caption that says so.

A program makes them, so a program knows what each shows; nothing is drawn by a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from draft_emoji.scene_words import things
from emoji_training import captions
from emoji_training.pictures import SIZE, Picture
from PIL import Image

from .words import MOTIONS, hidden, phrase

FRAMES = 8
# One path for each motion: where the thing is in a frame then follows from the words and the frame's number alone,
# which takes far fewer clips to learn than that frames have to agree on one of many paths.
SIDE = 30  # of a thing that moves, in pixels
SMALL, LARGE = 18, 48  # sides between which a thing grows or shrinks
FAR = 16  # pixels from the middle at which a movement starts and ends
STYLED, EMPTY = 0.3, 0.1  # shares of captions with a style, and without words
STEPS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}


@dataclass(frozen=True)
class Clip:
    """A picture, by its index, and its motion."""

    index: int
    motion: str


class Animator:
    """Draws random clips of `images` (uint8 (N, 64, 64, 3)), of which `meta` says what they show."""

    def __init__(self, images: np.ndarray, meta: Sequence[Picture]) -> None:
        self.images, self.meta = images, meta
        known = set(things())
        shown = [i for i, p in enumerate(meta) if p.concept >= 0 and p.phrase in known]
        self.choices = [Clip(i, m) for i in shown for m in MOTIONS if not hidden(meta[i].phrase, m)]

    def draw(self, generator: torch.Generator) -> Clip:
        """A random clip, of a thing in a motion that is not `hidden` for it."""
        return self.choices[int(torch.randint(len(self.choices), (), generator=generator))]

    def caption(self, clip: Clip, generator: torch.Generator) -> str:
        """ "flat style, a fox moving left": the style at random, sometimes nothing at all."""
        draw = torch.rand(2, generator=generator).tolist()
        if draw[0] < EMPTY:
            return ""
        picture = self.meta[clip.index]
        words = phrase(picture.phrase, clip.motion)
        return f"{captions.styled(picture.style)}, {words}" if draw[1] < STYLED else words

    def frames(self, clip: Clip, chosen: Sequence[int] = range(FRAMES)) -> np.ndarray:
        """uint8 (len(chosen), 64, 64, 3): the chosen ones of the clip's frames."""
        places = path(clip.motion)
        picture = Image.fromarray(self.images[clip.index])
        return np.stack([placed(picture, *places[i]) for i in chosen])


def path(motion: str) -> list[tuple[float, float, float]]:
    """Centre (x, y) and side of the thing in each of the frames, in pixels: a straight line at an even pace."""
    middle, share = SIZE / 2, np.linspace(0, 1, FRAMES)
    if motion in STEPS:
        dx, dy = STEPS[motion]
        return [(middle + a * dx, middle + a * dy, SIDE) for a in FAR * (2 * share - 1)]
    first, last = (SMALL, LARGE) if motion == "growing" else (LARGE, SMALL)
    return [(middle, middle, first + (last - first) * s) for s in share]


def placed(picture: Image.Image, x: float, y: float, side: float) -> np.ndarray:
    """The picture at this size around this point, on white, uint8 (64, 64, 3); what leaves the frame is cut off."""
    whole = round(side)
    canvas = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    tile = picture.resize((whole, whole), Image.Resampling.LANCZOS)
    canvas.paste(tile, (round(x - whole / 2), round(y - whole / 2)))
    return np.asarray(canvas)
