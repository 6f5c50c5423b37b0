"""Makes videos out of the concepts' pictures: one thing that moves, grows or shrinks. A program made them, so it knows.

"a fox moving left": eight frames on white, the thing never leaves them.
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
ASIDE = 6  # how far from the middle a path may lie, in pixels
HIDDEN_EVERY = 5  # of pairs of a thing and a motion
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
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
    """A picture, by its index, a motion, by its number, and how far from the middle its path lies."""

    index: int
    motion: int
    aside: int = 0


def hidden(thing: int, motion: int) -> bool:
    """Whether a thing and a motion, by number, are in no training video: a fifth of all pairs."""
    return (thing + motion) % HIDDEN_EVERY == 0


def shown(meta: Sequence[Picture]) -> Iterator[Video]:
    """A video of every pair that is not hidden, in every style, the way it takes drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    for index, picture in enumerate(meta):
        if picture.concept < 0 or picture.phrase not in THINGS:
            continue
        for motion in range(len(MOTIONS)):
            aside = int(torch.randint(-ASIDE, ASIDE + 1, (), generator=generator))
            if not hidden(THINGS.index(picture.phrase), motion):
                yield Video(index, motion, aside)


def draw(image: np.ndarray, video: Video) -> np.ndarray:
    """The frames uint8 (FRAMES, 64, 64, 3) of a picture (64, 64, 3)."""
    return np.stack([place(image, *box(video, frame)) for frame in range(FRAMES)])


def box(video: Video, frame: int) -> tuple[int, int, int]:
    """Side, left and top of the thing in a frame, in pixels."""
    share, middle = frame / (FRAMES - 1), (pictures.SIZE - SIDE) // 2
    way = round(share * (pictures.SIZE - SIDE))
    back, across = pictures.SIZE - SIDE - way, middle + video.aside
    if MOTIONS[video.motion] in ("growing", "shrinking"):
        low, high = (SMALL, LARGE) if MOTIONS[video.motion] == "growing" else (LARGE, SMALL)
        side = round(low + share * (high - low))
        return side, (pictures.SIZE - side) // 2, (pictures.SIZE - side) // 2
    return (SIDE, *((back, across), (way, across), (across, back), (across, way))[video.motion])


def place(image: np.ndarray, side: int, left: int, top: int) -> np.ndarray:
    """The picture at this size and place, on white."""
    canvas = np.full((pictures.SIZE, pictures.SIZE, 3), 255, dtype=np.uint8)
    tile = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    canvas[top : top + side, left : left + side] = np.asarray(tile)
    return canvas
