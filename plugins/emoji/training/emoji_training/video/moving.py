"""Makes videos out of the concepts' pictures: one thing that moves, grows or shrinks. A program made them, so it knows.

"a fox moving left", "a fox moving up and growing": eight frames on white, the thing never leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from .. import pictures
from ..pictures import Picture

FRAMES = 8
SIDE = 36  # of a thing that moves, in pixels
SMALL, LARGE = 24, 52  # sides between which one grows or shrinks
MOVING_LARGE = 48  # of one that moves too: from edge to edge its middle so travels as far as that of others
ASIDE = 6  # how far from the middle a path may lie, in pixels
HIDDEN_EVERY = 5  # of pairs of a thing and a motion
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
SIZES = MOTIONS[4:]
PAIRS = tuple((way, size) for way in ("moving up", "moving down") for size in SIZES)
ALL = (*((words,) for words in MOTIONS), *PAIRS)  # what a video may show
THINGS = (
    "a monkey face", "a dog face", "a fox", "a cat face", "a lion", "a tiger face", "a pig face", "an elephant",
    "a panda", "a rooster", "a penguin", "an owl", "a frog", "a turtle", "a fish", "a crab", "a butterfly",
    "a ladybug", "a rose", "a sunflower", "a cactus", "a watermelon", "a lemon", "a banana", "a pineapple",
    "a red apple", "a pear", "a strawberry", "a tomato", "a carrot", "a slice of pizza", "a hamburger", "a doughnut",
    "a birthday cake", "a star", "a red heart", "a house", "a red car", "a bus", "a rocket", "a balloon",
    "a soccer ball", "a basketball", "a bell", "a guitar", "a robot", "a skull", "a ghost",
)  # fmt: skip


@dataclass(frozen=True)
class Video:
    """A picture, by its index, what it shows, by its number in ALL, and how far from the middle its path lies."""

    index: int
    motion: int
    aside: int = 0


def hidden(thing: int, motion: int) -> bool:
    """Whether a thing and a motion, by number, are in no training video: a fifth of all pairs."""
    return (thing + motion) % HIDDEN_EVERY == 0


def is_hidden(thing: int, motions: Sequence[str]) -> bool:
    """Whether no training video shows a thing, by number, with one of these motions."""
    return any(hidden(thing, MOTIONS.index(words)) for words in motions)


def shown(meta: Sequence[Picture]) -> Iterator[Video]:
    """A video of every thing with one or two motions that is not hidden, in every style.

    The way it takes is drawn from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    for index, picture in enumerate(meta):
        if picture.concept < 0 or picture.phrase not in THINGS:
            continue
        for motion, words in enumerate(ALL):
            aside = int(torch.randint(-ASIDE, ASIDE + 1, (), generator=generator))
            if not is_hidden(THINGS.index(picture.phrase), words):
                yield Video(index, motion, aside)


def draw(image: np.ndarray, video: Video) -> np.ndarray:
    """The frames uint8 (FRAMES, 64, 64, 3) of a picture (64, 64, 3)."""
    return np.stack([place(image, *box(video, frame)) for frame in range(FRAMES)])


def box(video: Video, frame: int) -> tuple[int, int, int]:
    """Side, left and top of the thing in a frame, in pixels."""
    words, share, size = ALL[video.motion], frame / (FRAMES - 1), pictures.SIZE
    first = last = SIDE
    if words[-1] in SIZES:
        first, last = SMALL, LARGE if len(words) == 1 else MOVING_LARGE
    if words[-1] == "shrinking":
        first, last = last, first
    side = round(first + share * (last - first))
    across = (size - side) // 2
    if words[0] in SIZES:
        return side, across, across
    across += video.aside
    begin, end = first / 2, size - last / 2
    if words[0] in ("moving left", "moving up"):
        begin, end = size - first / 2, last / 2
    along = min(max(round(begin + share * (end - begin) - side / 2), 0), size - side)
    return (side, along, across) if words[0] in ("moving left", "moving right") else (side, across, along)


def place(image: np.ndarray, side: int, left: int, top: int) -> np.ndarray:
    """The picture at this size and place, on white."""
    canvas = np.full((pictures.SIZE, pictures.SIZE, 3), 255, dtype=np.uint8)
    tile = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    canvas[top : top + side, left : left + side] = np.asarray(tile)
    return canvas
