"""The scores in numpy, on scikit-image's CIELAB, to compare the rewards with; no gradient.

Nothing but `draft rewards compare` and the tests imports this. It needs scikit-image and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageColor
from scipy.special import logsumexp
from skimage.color import deltaE_cie76, lab2lch, rgb2lab
from torch import Tensor

from draft_reward_colour import AskedColourConfig, ColourHarmonyConfig, PaletteConfig

Scorer = Callable[[list[Image.Image], list[str]], Tensor]
Numbers = npt.NDArray[np.float64]

# Borders of the sectors in degrees, first and last, of templates that are not turned.
BORDERS: dict[str, list[tuple[float, float]]] = {
    "i": [(-9, 9)],
    "V": [(-46.8, 46.8)],
    "L": [(-9, 9), (50.4, 129.6)],
    "I": [(-9, 9), (171, 189)],
    "T": [(-90, 90)],
    "Y": [(-46.8, 46.8), (171, 189)],
    "X": [(-46.8, 46.8), (133.2, 226.8)],
}
TURNS = np.arange(0, 360, 0.1)
SHORTLIST = 20  # turns of each template that are computed pixel by pixel


def palette(reward: object, config: PaletteConfig) -> Scorer:
    """scikit-image's CIE76 distance to each colour, scipy's soft minimum, and the mean over what is no background."""

    def score(image: Image.Image) -> float:
        lab = rgb2lab(np.asarray(image))
        distances = [deltaE_cie76(lab, _lab_of(colour)) for colour in config.colours]
        nearest = -logsumexp(-config.sharpness * np.stack(distances), axis=0) / config.sharpness
        if config.background is not None:
            counts = deltaE_cie76(lab, _lab_of(config.background.colour)) > config.background.tolerance
            nearest = nearest[counts] if counts.any() else nearest
        return -float(nearest.mean())

    return lambda images, prompts: torch.tensor([score(image) for image in images], dtype=torch.float64)


def asked_colour(reward: object, config: AskedColourConfig) -> Callable[..., Tensor]:
    """Minus the mean of scikit-image's CIE76 distance to the colour of each image, over what is no background."""

    def score(image: Image.Image, colour: str) -> float:
        lab = rgb2lab(np.asarray(image))
        distance = deltaE_cie76(lab, _lab_of(colour))
        if config.background is not None:
            counts = deltaE_cie76(lab, _lab_of(config.background.colour)) > config.background.tolerance
            distance = distance[counts] if counts.any() else distance
        return -float(distance.mean())

    def scores(images: list[Image.Image], prompts: list[str], columns: Mapping[str, Sequence[str]]) -> Tensor:
        found = [score(*pair) for pair in zip(images, columns["colour"], strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    return scores


def harmony(reward: object, config: ColourHarmonyConfig) -> Scorer:
    """scikit-image's hue and chroma; each template in every turn, at half degrees first, and the best exactly."""

    def score(image: Image.Image) -> float:
        _, chroma, hue = np.moveaxis(lab2lch(rgb2lab(np.asarray(image))), -1, 0).reshape(3, -1)
        degrees = np.degrees(hue)
        mean = np.inf
        for letter in config.templates:
            for turn in _shortlist(degrees, chroma, letter):
                mean = min(mean, float((chroma * _outside(degrees - turn, letter)).mean()))
        return -mean / max(float(chroma.mean()), 1.0)

    return lambda images, prompts: torch.tensor([score(image) for image in images], dtype=torch.float64)


def _lab_of(colour: str) -> Numbers:
    lab: Numbers = rgb2lab(np.array(ImageColor.getrgb(colour)) / 255)
    return lab


def _shortlist(degrees: Numbers, chroma: Numbers, letter: str) -> Numbers:
    weights = np.bincount((degrees % 360 * 2).astype(int) % 720, weights=chroma, minlength=720)
    middles = (np.arange(720) + 0.5) / 2
    costs = [float(weights @ _outside(middles - turn, letter)) for turn in TURNS]
    shortlist: Numbers = TURNS[np.argsort(costs)[:SHORTLIST]]
    return shortlist


def _outside(degrees: Any, letter: str) -> Numbers:
    """Degrees from each hue to the nearest sector, going round either way."""
    gaps = []
    for first, last in BORDERS[letter]:
        before, after = (first - degrees) % 360, (degrees - last) % 360
        gaps.append(np.where((degrees - first) % 360 <= last - first, 0.0, np.minimum(before, after)))
    nearest: Numbers = np.minimum.reduce(gaps)
    return nearest
