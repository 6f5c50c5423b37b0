"""Harmonic templates on the hue circle, and which of them, turned how, hues fit best.

Daniel Cohen-Or, Olga Sorkine, Ran Gal, Tommer Leyvand, Ying-Qing Xu, "Color harmonization", SIGGRAPH 2006, with the
templates of Yutaka Matsuda and Masataka Tokumaru et al. 2002. All angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sector(NamedTuple):
    """An arc of the hue circle: where its centre is while the template is not turned, and how wide it is."""

    centre: float
    width: float


# Two sectors each, so that they fit into one tensor: where a template has one, it stands twice.
TEMPLATES: dict[str, tuple[Sector, Sector]] = {
    "i": (Sector(0, 18.0), Sector(0, 18.0)),
    "V": (Sector(0, 93.6), Sector(0, 93.6)),
    "L": (Sector(0, 18.0), Sector(90, 79.2)),
    "I": (Sector(0, 18.0), Sector(180, 18.0)),
    "T": (Sector(0, 180.0), Sector(0, 180.0)),
    "Y": (Sector(0, 93.6), Sector(180, 18.0)),
    "X": (Sector(0, 93.6), Sector(180, 93.6)),
}

# Of the turns that are tried, and of the hues that are counted. All borders of sectors, and the middles between
# them, are multiples of it: between two of its hues every distance is linear, so nothing is lost by counting.
STEPS = 3600


def outside(hues: Tensor, sectors: Tensor) -> Tensor:
    """How far each hue lies outside the nearest sector, (..., N), 0 inside.

    Arguments:
        hues: (..., N).
        sectors: (..., 2, 2), for each of two sectors its centre and its width.
    """
    centres, widths = sectors[..., 0, None], sectors[..., 1, None]
    apart = torch.remainder(hues[..., None, :] - centres + 180, 360) - 180
    return (apart.abs() - widths / 2).clamp(min=0).amin(-2)


def best_fit(hues: Tensor, weights: Tensor, templates: Sequence[str]) -> Tensor:
    """The sectors (B, 2, 2) of the template, turned, that the weighted hues lie outside of least; no gradient.

    Every template is tried in every multiple of 0.1 degrees. The weights of the hues are shared between the two
    nearest multiples, and all turns are computed at once, as a correlation on the circle.

    Arguments:
        hues: (B, N).
        weights: (B, N), not negative.
        templates: letters of `TEMPLATES`.
    """
    with torch.no_grad():
        candidates = hues.new_tensor([TEMPLATES[letter] for letter in templates])
        costs = outside(torch.arange(STEPS, device=hues.device, dtype=hues.dtype) * (360 / STEPS), candidates)
        spectrum = torch.fft.rfft(_counted(hues, weights))[:, None] * torch.fft.rfft(costs).conj()
        best = torch.fft.irfft(spectrum, n=STEPS).flatten(1).argmin(1)
        sectors = candidates[best // STEPS].clone()
        sectors[..., 0] += (best % STEPS).to(hues)[:, None] * (360 / STEPS)
    return sectors


def _counted(hues: Tensor, weights: Tensor) -> Tensor:
    """The weight (B, `STEPS`) at every multiple of 0.1 degrees."""
    position = torch.remainder(hues.nan_to_num(), 360) * (STEPS / 360)
    below = position.floor()
    share = position - below
    counted = hues.new_zeros(len(hues), STEPS)
    counted.scatter_add_(1, below.long() % STEPS, weights * (1 - share))
    counted.scatter_add_(1, (below.long() + 1) % STEPS, weights * share)
    return counted
