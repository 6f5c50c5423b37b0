"""Makes short clips of an emoji that moves, grows, shrinks or stays, and asks how: what the program did is the answer.

Unlike the videos that `emoji-video` is trained on, they begin anywhere and at any size, so that no single frame tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import pictures
from ..pictures import Picture
from ..scenes.composing import WHITE
from ..video.moving import FRAMES, MOTIONS, THINGS, hidden, place
from .collages import pick
from .questions import HINT, HINTED, Question

STILL, PAIRED = 0.2, 0.3  # of the clips: those that stand still, and those that move and change their size
SIDEWAYS = 2.0  # times as often as each other motion: these are learnt last
LEAST, MOST = 12, 40  # pixels that a thing moves, or by which it grows
SMALLEST, LARGEST = 20, 46  # sides of a thing that moves, in pixels
TREMBLE = 2  # pixels by which place and size are off in each frame
OPPOSITE = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
}


PAIRS = tuple(f"{way} and {size}" for way in ("moving up", "moving down") for size in ("growing", "shrinking"))


@dataclass(frozen=True)
class Clip:
    """A picture, by its index; its motion, "" for none, "moving up and growing" for two; the thing in every frame.

    That is its side, left and top, in pixels.
    """

    index: int
    motion: str
    boxes: tuple[tuple[int, int, int], ...]

    def draw(self, image: np.ndarray) -> np.ndarray:
        """The frames, uint8 (F, 64, 64, 3), of the picture (64, 64, 3)."""
        return np.stack([place(image, *box) for box in self.boxes])


def random_clip(meta: Sequence[Picture], choices: Sequence[int], frames: int, generator: torch.Generator) -> Clip:
    """A clip of one of the pictures `choices`, whose thing and motion are no pair hidden from the videos."""
    index = choices[pick(len(choices), generator)]
    phrase = meta[index].phrase
    thing = THINGS.index(phrase) if phrase in THINGS else None
    allowed = [m for i, m in enumerate(MOTIONS) if thing is None or not hidden(thing, i)]
    kind = float(torch.rand((), generator=generator))
    if STILL <= kind < STILL + PAIRED:
        allowed = [pair for pair in PAIRS if all(part in allowed for part in motions_of(pair))] or allowed
    shares = torch.tensor([SIDEWAYS if m in ("moving left", "moving right") else 1.0 for m in allowed])
    motion = "" if kind < STILL else allowed[int(torch.multinomial(shares, 1, generator=generator))]
    return Clip(index, motion, boxes(motion, times(frames, generator), generator))


def times(frames: int, generator: torch.Generator) -> list[float]:
    """When the frames are seen, from 0 to 1: evenly, or as they happen to be chosen of a video's."""
    if pick(2, generator):
        return [i / (frames - 1) for i in range(frames)]
    chosen = sorted(torch.randperm(FRAMES, generator=generator)[:frames].tolist())
    return [(i - chosen[0]) / (chosen[-1] - chosen[0]) for i in chosen]


def boxes(motion: str, seen: Sequence[float], generator: torch.Generator) -> tuple[tuple[int, int, int], ...]:
    """Side, left and top of the thing at those times, inside the frame."""
    size = pictures.SIZE
    if len(motions_of(motion)) == 2:
        path = both(*motions_of(motion), seen, generator)
    elif motion in ("growing", "shrinking"):
        small = SMALLEST + pick(17, generator)
        large = min(size, small + LEAST + pick(MOST - LEAST + 1, generator))
        begin, end = (small, large) if motion == "growing" else (large, small)
        x, y = (large / 2 + pick(size - large + 1, generator) for _ in range(2))
        path = [(begin + t * (end - begin), x, y) for t in seen]
    else:
        side = SMALLEST + pick(LARGEST - SMALLEST + 1, generator)
        room = size - side
        least = LEAST if motion else 0
        way = least + pick(min(MOST, room) - least + 1, generator) if motion else 0
        along, across = side / 2 + pick(room - way + 1, generator), side / 2 + pick(room + 1, generator)
        back = motion in ("moving left", "moving up")
        line = [along + way * (1 - t if back else t) for t in seen]
        flat = motion in ("moving left", "moving right") or not motion
        path = [(float(side), *((at, across) if flat else (across, at))) for at in line]
    return tuple(inside(*step, generator) for step in path)


def both(way: str, change: str, seen: Sequence[float], generator: torch.Generator) -> list[tuple[float, float, float]]:
    """Side and middle of a thing that moves up or down and changes its size on the way, at those times."""
    size = pictures.SIZE
    small = SMALLEST + pick(9, generator)
    large = small + LEAST + pick(13, generator)
    begin, end = (small, large) if change == "growing" else (large, small)
    far = LEAST + pick(size - (small + large) // 2 - LEAST + 1, generator)
    free = size - (small + large) / 2 - far  # how far the whole way may lie from the edge where it begins
    start = begin / 2 + free * float(torch.rand((), generator=generator))
    x = large / 2 + pick(size - large + 1, generator)
    y = [start + t * far if way == "moving down" else size - start - t * far for t in seen]
    return [(begin + t * (end - begin), float(x), at) for t, at in zip(seen, y, strict=True)]


def inside(side: float, x: float, y: float, generator: torch.Generator) -> tuple[int, int, int]:
    """The box of a thing with this side and middle, a little off, moved and cut until it lies in the frame."""
    off = torch.randint(-TREMBLE, TREMBLE + 1, (3,), generator=generator).tolist()
    whole = min(round(side) + off[0] // 2, pictures.SIZE)
    left, top = (
        min(max(round(at - whole / 2) + o, 0), pictures.SIZE - whole) for at, o in zip((x, y), off[1:], strict=True)
    )
    return whole, left, top


def motions_of(motion: str) -> list[str]:
    """The one or two motions of a clip's motion, none of one that stands still."""
    return [part for part in motion.split(" and ") if part]


def word(motion: str) -> str:
    """The word that tells a motion from the others: "left" of "moving left", "still" of none."""
    return motion.rsplit(" ", 1)[-1] or "still"


def ask(motion: str, asked: str, generator: torch.Generator) -> Question:
    """Whether a clip with a motion shows the one asked for."""
    hinted = float(torch.rand((), generator=generator)) < HINTED
    return Question("motion", f"Is it {asked}?" + HINT * hinted, "yes" if asked in motions_of(motion) else "no")


def questions(motion: str, generator: torch.Generator) -> list[Question]:
    """Of each motion of a clip one to be answered with yes, then one with no, and unless it has two, one in words."""
    shown = motions_of(motion)
    others = [m for m in MOTIONS if m not in shown]
    wrong = others[pick(len(others), generator)]
    if shown and pick(2, generator):
        turned = shown[pick(len(shown), generator)] if len(shown) > 1 else shown[0]
        wrong = next(m for m in MOTIONS if word(m) == OPPOSITE[word(turned)])
    asked = [*(ask(motion, m, generator) for m in shown), ask(motion, wrong, generator)]
    return asked if len(shown) > 1 else [*asked, Question("open", "How is it moving?", word(motion))]


def drawn_at(frames: np.ndarray) -> np.ndarray:
    """Whether something is drawn at the middle of each patch of frames (..., 64, 64, 3), bool (..., 64)."""
    step = pictures.SIZE // 8
    middle = frames[..., step // 2 :: step, step // 2 :: step, :].min(-1) < WHITE
    return middle.reshape(*middle.shape[:-2], -1)
