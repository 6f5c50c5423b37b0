"""CIELAB coordinates of sRGB images, and the two things that are read off them: distance and hue.

sRGB after IEC 61966-2-1, CIELAB after CIE 15:2004 with the white point of sRGB itself, D65.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Linear RGB to XYZ, as IEC 61966-2-1 prints it. Each row sums to that coordinate of white.
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))

_KNEE = 0.04045  # of sRGB's transfer curve
_DELTA = 6 / 29  # of CIELAB's cube root, linear below its cube

COLOURLESS = 1e-3  # chroma below which there is no hue: float32 leaves about this much of a grey


class Polar(NamedTuple):
    """Hue in degrees, [-180, 180], and chroma, both of the shape of the images without their channels.

    A grey pixel has hue 0, without gradient.
    """

    hue: Tensor
    chroma: Tensor


def to_lab(images: Tensor) -> Tensor:
    """L* (0 to 100), a* and b* of sRGB images (..., 3, H, W) in [0, 1], of the same shape, with their gradient.

    White is (100, 0, 0). Levels a little outside [0, 1], as decoders overshoot, continue the curves.
    """
    linear = torch.where(images > _KNEE, ((images.clamp(min=_KNEE) + 0.055) / 1.055) ** 2.4, images / 12.92)
    matrix = images.new_tensor(_TO_XYZ)
    relative = torch.einsum("oc,...chw->...ohw", matrix / matrix.sum(1, keepdim=True), linear)
    root = relative.clamp(min=_DELTA**3) ** (1 / 3)
    x, y, z = torch.where(relative > _DELTA**3, root, relative / (3 * _DELTA**2) + 4 / 29).unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_of(colour: str, like: Tensor) -> Tensor:
    """CIELAB coordinates (3, 1, 1) of "#rrggbb", of the type and on the device of `like`."""
    levels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return to_lab(like.new_tensor(levels).view(3, 1, 1))


def cie76(lab: Tensor, colour: Tensor) -> Tensor:
    """Euclidean distance (..., H, W) between pixels (..., 3, H, W) and a colour (3, 1, 1), both in CIELAB.

    Where it is 0 its gradient is 0. About 2.3 is just noticeable.
    """
    distance: Tensor = torch.linalg.vector_norm(lab - colour, dim=-3)
    return distance


def polar(lab: Tensor) -> Polar:
    """Hue and chroma (..., H, W) of pixels (..., 3, H, W) in CIELAB."""
    a, b = lab[..., 1, :, :], lab[..., 2, :, :]
    chroma = torch.linalg.vector_norm(lab[..., 1:, :, :], dim=-3)
    has_hue = chroma > COLOURLESS
    hue = torch.atan2(b.where(has_hue, 0.0), a.where(has_hue, 1.0)).rad2deg()
    return Polar(hue, chroma)
