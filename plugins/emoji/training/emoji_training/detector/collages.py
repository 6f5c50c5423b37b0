"""Scatters emoji over a canvas, and knows the box of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from draft_emoji.scene_words import COLOURS, dyeable
from PIL import Image, ImageEnhance

from ..critic.collages import pick
from ..pictures import Picture
from ..scenes.composing import Composer, Thing

SIDE = 64  # of a collage, in pixels
SIZES, ALONE = (20, 40), (24, 64)  # of a thing among others, and of one that stands alone
COUNTS = (1, 2, 3, 4)  # of things, each as likely
DYED, TINTED = 0.2, 0.4  # shares: of the things that can be, of collages
CROWD = (20, 30)  # sizes for training where three or more are wanted, so that they find room
TURN, SQUEEZE, SATURATION, LIGHT = 12.0, 0.15, (0.6, 1.4), (0.8, 1.1)  # how varied things are: degrees, share, factors
OVERLAP = 0.15  # of the smaller square, at most
TRIES = 20


@dataclass(frozen=True)
class Collage:
    """An image, uint8 (SIDE, SIDE, 3), its pictures' indices, and their boxes (K, 4): x1, y1, x2, y2 in pixels."""

    image: np.ndarray
    indices: tuple[int, ...]
    boxes: np.ndarray


class Scatter:
    """Draws random collages of `images` (uint8 (N, 64, 64, 3)): each of its pictures from one of `pools`, by `shares`.

    With `varied`, for training, things are turned, squeezed and recoloured, and smaller where there are many.
    """

    def __init__(
        self,
        images: np.ndarray,
        meta: Sequence[Picture],
        *pools: Sequence[int],
        shares: Sequence[float] = (1.0,),
        varied: bool = False,
    ) -> None:
        self.meta, self.varied = meta, varied
        self.pools = [(pool, share) for pool, share in zip(pools, shares, strict=True) if pool]
        self.painter = Composer(images, meta)

    @property
    def choices(self) -> list[int]:
        """The indices of all pictures that it draws from."""
        return [index for pool, _ in self.pools for index in pool]

    def collage(self, generator: torch.Generator, counts: Sequence[int] = COUNTS) -> Collage:
        """Things at random places, in random sizes, on white or a pale tint; the smallest on top, all but in view.

        How many is drawn from `counts`; what finds no room is left out.
        """
        count = counts[pick(len(counts), generator)]
        low, high = ALONE if count == 1 else CROWD if self.varied and count > 2 else SIZES
        sizes = sorted((low + pick(high - low + 1, generator) for _ in range(count)), reverse=True)
        canvas = Image.new("RGB", (SIDE, SIDE), self._tint(generator))
        squares: list[tuple[int, int, int]] = []
        found: list[tuple[int, tuple[int, ...]]] = []
        for size in sizes:
            if (square := _free(size, squares, generator)) is not None:
                squares.append(square)
                found.append(self._paste(canvas, square, generator))
        return Collage(np.asarray(canvas), tuple(i for i, _ in found), np.array([box for _, box in found], np.float32))

    def _tint(self, generator: torch.Generator) -> tuple[int, int, int]:
        draw = torch.rand(4, generator=generator).tolist()
        if draw[0] >= TINTED:
            return 255, 255, 255
        red, green, blue = (round(255 - 75 * part) for part in draw[1:])
        return red, green, blue

    def _paste(
        self, canvas: Image.Image, square: tuple[int, int, int], generator: torch.Generator
    ) -> tuple[int, tuple[int, ...]]:
        """Paste a random picture; its index and the box of what is no background in it."""
        left, top, size = square
        where, dyed, mirrored = torch.rand(3, generator=generator).tolist()
        pool = self._pool(where)
        index = pool[pick(len(pool), generator)]
        colour = COLOURS[pick(len(COLOURS), generator)]
        thing = Thing(index, colour if dyed < DYED and dyeable(self.meta[index].phrase) else "")
        tile = Image.fromarray(self.painter.dyed(thing))
        shape = Image.fromarray(self.painter.shape(index).astype(np.uint8) * 255)
        if self.meta[index].mirror and mirrored < 0.5:
            tile, shape = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (tile, shape))
        width = height = size
        if self.varied:
            tile, shape, width, height = _vary(tile, shape, size, torch.rand(5, generator=generator).tolist())
        shape = shape.resize((width, height), Image.Resampling.BOX if size < tile.width else Image.Resampling.BILINEAR)
        canvas.paste(tile.resize((width, height), Image.Resampling.LANCZOS), (left, top), shape)
        x1, y1, x2, y2 = shape.point(lambda level: 255 * (level >= 128)).getbbox() or (0, 0, width, height)
        return index, (left + x1, top + y1, left + x2, top + y2)

    def _pool(self, draw: float) -> Sequence[int]:
        """The pool that a number in [0, 1) falls to."""
        draw *= sum(share for _, share in self.pools)
        for pool, share in self.pools[:-1]:
            if draw < share:
                return pool
            draw -= share
        return self.pools[-1][0]


def _vary(
    tile: Image.Image, shape: Image.Image, size: int, draw: Sequence[float]
) -> tuple[Image.Image, Image.Image, int, int]:
    """The tile and its shape turned, the tile in paler or stronger, darker or lighter colours; a width and a height."""
    turn, saturation, light, squeeze, upright = draw
    angle = TURN * (2 * turn - 1)
    tile = tile.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
    shape = shape.rotate(angle, Image.Resampling.BILINEAR)
    for enhance, (low, high), at in (
        (ImageEnhance.Color, SATURATION, saturation),
        (ImageEnhance.Brightness, LIGHT, light),
    ):
        tile = enhance(tile).enhance(low + (high - low) * at)
    short = max(1, round(size * (1 - SQUEEZE * squeeze)))
    return tile, shape, *((short, size) if upright < 0.5 else (size, short))


def _free(
    size: int, squares: Sequence[tuple[int, int, int]], generator: torch.Generator
) -> tuple[int, int, int] | None:
    """Left, top and side of a random square that hardly overlaps others; None if none was found."""
    for _ in range(TRIES):
        left, top = (pick(SIDE - size + 1, generator) for _ in range(2))
        if all(_overlap((left, top, size), other) <= OVERLAP for other in squares):
            return left, top, size
    return None


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The area that two squares share, as a share of the smaller one's."""
    sides = [max(0, min(one[k] + one[2], other[k] + other[2]) - max(one[k], other[k])) for k in (0, 1)]
    return sides[0] * sides[1] / min(one[2], other[2]) ** 2
