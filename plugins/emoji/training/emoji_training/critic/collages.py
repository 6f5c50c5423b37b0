"""Makes collages of one to four emoji whose content a program knows: things, colours, style, places.

Nothing here is drawn by a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from draft_emoji.scene_words import COLOURS, dyeable
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from .. import pictures
from ..pictures import Picture
from ..scenes.composing import WHITE, Composer, Thing
from ..vae import to_tensor

DYED = 0.6  # of the things that can be
MOSTLY, HARDLY = 0.55, 0.08  # share of a thing's area from which it has a colour, and up to which it has not
# Centres of the things in 64ths of the image: where one or two stand says something, of more it does not.
CELLS = ((16, 16), (48, 16), (16, 48), (48, 48))
SIDE_OF = {"left": (16, 32), "right": (48, 32), "top": (32, 16), "bottom": (32, 48)}
LAYOUTS = {"alone": 0.5, "placed": 0.14, "row": 0.12, "column": 0.08, "three": 0.08, "four": 0.08}


@dataclass(frozen=True)
class Shown:
    """A picture in a collage, by its index; the colour it is dyed in, "" for its own; its place, "" if that is open."""

    index: int
    colour: str = ""
    place: str = ""


class Album:
    """Draws random collages of the pictures `choices`, of `images` (uint8 (N, 64, 64, 3)) and what is known of them."""

    def __init__(self, images: np.ndarray, meta: Sequence[Picture], choices: Sequence[int]) -> None:
        self.meta = meta
        self.painter = Composer(images, meta)
        self.by_style = {s: [i for i in choices if meta[i].style == s] for s in pictures.STYLES}
        self.styles = [s for s, found in self.by_style.items() if found]
        self.areas: dict[int, dict[str, float]] = {}

    def collage(self, generator: torch.Generator, layout: str | None = None, dyed: float = DYED) -> tuple[Shown, ...]:
        """Different things of one style, such a share of them dyed; the layout at random, or the one named."""
        if layout is None:
            weights = torch.tensor(list(LAYOUTS.values()))
            layout = list(LAYOUTS)[int(torch.multinomial(weights, 1, generator=generator))]
        style = self.styles[pick(len(self.styles), generator)]
        labels = len({self.meta[i].label for i in self.by_style[style]})
        places = {
            "alone": ("",),
            "placed": (list(SIDE_OF)[pick(4, generator)],),
            "row": ("left", "right"),
            "column": ("top", "bottom"),
            "three": ("",) * 3,
            "four": ("",) * 4,
        }[layout][:labels]
        chosen: list[int] = []
        while len(chosen) < len(places):
            index = self.by_style[style][pick(len(self.by_style[style]), generator)]
            if all(self.meta[index].label != self.meta[other].label for other in chosen):
                chosen.append(index)
        return tuple(Shown(i, self._dye(i, dyed, generator), place) for i, place in zip(chosen, places, strict=True))

    def _dye(self, index: int, share: float, generator: torch.Generator) -> str:
        draw = float(torch.rand((), generator=generator))
        colour = COLOURS[pick(len(COLOURS), generator)]
        return colour if draw < share and dyeable(self.meta[index].phrase) else ""

    def image(self, things: Sequence[Shown], generator: torch.Generator) -> np.ndarray:
        """uint8 (64, 64, 3): every thing near its place, in a size that varies, on white."""
        return self.drawn(things, generator)[0]

    def drawn(self, things: Sequence[Shown], generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The image, and the number of the thing at each of its pixels, (64, 64), -1 on white."""
        canvas = np.full((pictures.SIZE, pictures.SIZE, 3), 255, dtype=np.uint8)
        owner = np.full((pictures.SIZE, pictures.SIZE), -1)
        cells = torch.randperm(4, generator=generator).tolist()
        for number, thing in enumerate(things):
            alone = len(things) == 1 and not thing.place
            x, y = SIDE_OF.get(thing.place, (32, 32) if alone else CELLS[cells[number]])
            low, high = (50, 64) if alone else (26, 34) if len(things) < 3 else (24, 31)
            side = low + pick(high - low + 1, generator)
            dx, dy = torch.randint(-3, 4, (2,), generator=generator).tolist()
            tile = np.asarray(Image.fromarray(self._painted(thing)).resize((side, side), Image.Resampling.LANCZOS))
            left, top = (min(max(at - side // 2, 0), pictures.SIZE - side) for at in (x + dx, y + dy))
            part = canvas[top : top + side, left : left + side]
            np.minimum(part, tile, out=part)
            owner[top : top + side, left : left + side][tile.min(-1) < WHITE] = number
        return canvas, owner

    def _painted(self, thing: Shown) -> np.ndarray:
        return self.painter.dyed(Thing(thing.index, thing.colour))

    def has_colour(self, thing: Shown, colour: str) -> bool | None:
        """Whether the thing has the colour: dyed in it, or most of its area is in it; None if that is open."""
        if thing.colour:
            return thing.colour == colour
        share = self._areas(thing.index).get(colour, 0.0)
        return True if share >= MOSTLY else False if share <= HARDLY else None

    def _areas(self, index: int) -> dict[str, float]:
        """The share of each colour in the area of a picture's thing."""
        if index not in self.areas:
            names = colour_names(self.painter.images[index])[self.painter.shape(index)]
            self.areas[index] = {c: float((names == c).mean()) if len(names) else 0.0 for c in COLOURS}
        return self.areas[index]


def pick(count: int, generator: torch.Generator) -> int:
    """A random number below `count`."""
    return int(torch.randint(count, (), generator=generator))


def colour_names(image: np.ndarray) -> np.ndarray:
    """The name of each pixel's colour, (H, W), of uint8 (H, W, 3); "" for greys and what is hard to name."""
    hue, saturation, value = np.moveaxis(
        np.asarray(Image.fromarray(image).convert("HSV"), dtype=np.float32) / 255, -1, 0
    )
    hue = 360 * hue
    edges = {"red": 18, "orange": 42, "yellow": 68, "green": 165, "blue": 252, "purple": 300, "pink": 342}
    names = np.select([hue < edge for edge in edges.values()], list(edges), "red")
    names = np.where((saturation < 0.35) | (value < 0.2), "", names)
    names = np.where((hue >= 12) & (hue < 50) & (value < 0.68) & (names != ""), "brown", names)
    pale = ((hue >= 290) | (hue < 15)) & (value > 0.75) & (saturation >= 0.2) & (saturation < 0.6)
    return np.where(pale, "pink", names)


def seen_badly(images: np.ndarray, generator: torch.Generator) -> Tensor:
    """(B, 3, 64, 64) in about [-1, 1]: some blurred, paler or noisy, as a small denoiser draws; colours stay."""
    rows = []
    for x, (blur, pale, noise) in zip(
        to_tensor(images), torch.rand(len(images), 3, generator=generator).tolist(), strict=True
    ):
        if blur < 0.6:
            x = transforms.gaussian_blur(x, [7, 7], [0.3 + 1.7 * blur])
        x = 1 + (x - 1) * (0.75 + 0.35 * pale)
        rows.append(x + 0.12 * noise * torch.randn(x.shape, generator=generator))
    return torch.stack(rows).clamp(-1, 1)
