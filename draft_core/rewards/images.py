"""Differentiable image operations, written once for every reward, and the way between files and tensors.

Images are float (N, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from draft_core.rewards.image_files import read_image
from draft_core.rewards.processors import through

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "FILTERS",
    "center_crop",
    "normalize",
    "read_image",
    "resampling_weights",
    "resize_and_crop_like_pil",
    "resize_like_pil",
    "resize_shortest_like_pil",
    "round_straight_through",
    "through",
    "to_pil",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Radford et al. 2021, as published with the weights
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_FINE = 1 << 22  # steps per unit of the weights in Pillow's Resample.c, for 8-bit images
_COARSE = 1 << 11


def round_straight_through(values: torch.Tensor) -> torch.Tensor:
    """`values` of any shape, rounded, halves up; its gradient is the identity (Bengio et al. 2013, arXiv 1308.3432)."""
    return values + ((values + 0.5).floor() - values).detach()


def resize_like_pil(images: torch.Tensor, height: int, width: int, *, filter: str = "bicubic") -> torch.Tensor:
    """Pillow's 8-bit resize, with a gradient: (N, 3, height, width) in [0, 1].

    Pillow resizes the rows, rounds and clamps to 8 bits, then the columns likewise. (Pillow 13 takes the columns
    first where height loses more than twice what width loses. The order stays here what it was when the
    published scorers were made.) The rounding is straight-through; clamped pixels get no gradient, like in
    `torch.clamp`.

    Arguments:
        images: (N, 3, H, W) in [0, 1]; levels between two of 8 bits are rounded first.
        height, width: in pixels.
        filter: name of one of `FILTERS`.

    Raises:
        ValueError: if the filter is none of these.

    Source: Pillow's `Resample.c`.
    """
    return _resize(images, height, width, slice(0, height), slice(0, width), filter)


def resize_and_crop_like_pil(
    images: torch.Tensor, size: int, crop: int, *, rounding: str, filter: str = "bicubic"
) -> torch.Tensor:
    """`center_crop` of `resize_shortest_like_pil`, (N, 3, crop, crop), where only what the crop keeps is computed.

    The time and memory it takes do not grow with what a long image has outside its central square.

    Arguments:
        images: (N, 3, H, W) in [0, 1].
        size: what the shortest side is resized to, in pixels.
        crop: side of the square, in pixels.
        rounding: as in `center_crop`.
        filter: name of one of `FILTERS`.

    Raises:
        ValueError: if the resized images are smaller than `crop`, or `rounding` or `filter` is unknown.
    """
    height, width = _shortest_resized(images, size)
    rows, columns = (_central(side, crop, rounding) for side in (height, width))
    return _resize(images, height, width, rows, columns, filter)


def _resize(images: torch.Tensor, height: int, width: int, rows: slice, columns: slice, filter: str) -> torch.Tensor:
    """Some rows and columns of the resized images, as `resize_like_pil` gives them."""
    source_height, source_width = images.shape[-2:]
    down, of_rows = _resampling(source_height, height, filter, rows)
    across, of_columns = _resampling(source_width, width, filter, columns)
    levels = round_straight_through(images[..., down, across] * 255).clamp(0, 255)
    if width != source_width:
        levels = _resample_columns(levels, of_columns)
    if height != source_height:
        levels = _resample_columns(levels.mT, of_rows).mT
    return levels / 255


def _resample_columns(levels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Whole levels (..., source) to whole levels (..., target), rounded just as Pillow's integers are.

    Sums that fall halfway between two levels are common where source and target have common factors. Both
    halves of a weight are short enough for float32 to add their products without error.
    """
    coarse = (weights * _COARSE).round() / _COARSE
    high, low = levels @ coarse.to(levels).T, levels @ (weights - coarse).to(levels).T
    smooth = high + low
    with torch.no_grad():
        whole = (high + 0.5).floor()
        rounded = whole + (high + 0.5 - whole + low).floor()
    return (smooth + (rounded - smooth).detach()).clamp(0, 255)


def resize_shortest_like_pil(images: torch.Tensor, size: int, *, filter: str = "bicubic") -> torch.Tensor:
    """(N, 3, H', W') in [0, 1]: the shortest side is `size`, the longer one truncated to whole pixels.

    Arguments:
        images: (N, 3, H, W) in [0, 1].
        size: of the shortest side, in pixels.
        filter: name of one of `FILTERS`.

    Raises:
        ValueError: if the filter is none of these.

    Source: lengths as in torchvision's `resize`, pixels as in `resize_like_pil`.
    """
    return resize_like_pil(images, *_shortest_resized(images, size), filter=filter)


def _shortest_resized(images: torch.Tensor, size: int) -> tuple[int, int]:
    """Height and width where the shortest side is `size`."""
    height, width = images.shape[-2:]
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def resampling_weights(source: int, target: int, filter: str = "bicubic") -> torch.Tensor:
    """The matrix (target, source), float64, of one of Pillow's antialiased filters, in Pillow's steps of 2^-22.

    Arguments:
        source, target: lengths in pixels, before and after.
        filter: name of one of `FILTERS`.

    Raises:
        ValueError: if the filter is none of these.

    Source: Pillow's `Resample.c`; each row sums to 1 up to that rounding.
    """
    return _weights(source, target, filter, slice(0, target))[1]


def _resampling(source: int, target: int, filter: str, kept: slice) -> tuple[slice, torch.Tensor]:
    """What of the source the `kept` part of the target needs, and the weights between both."""
    _known(filter)
    if source == target:
        return kept, torch.empty(0)
    return _weights(source, target, filter, kept)


def _known(filter: str) -> str:
    if filter not in FILTERS:
        raise ValueError(f"filter is {filter!r}, not one of {list(FILTERS)}")
    return filter


def _weights(source: int, target: int, filter: str, kept: slice) -> tuple[slice, torch.Tensor]:
    support, kernel = FILTERS[_known(filter)]
    scale = source / target
    stretch = max(scale, 1.0)  # the kernel widens when the image shrinks: that is the antialiasing
    centres = (torch.arange(kept.start, kept.stop, dtype=torch.float64)[:, None] + 0.5) * scale
    first = max(math.floor(float(centres[0]) - support * stretch), 0)
    last = min(math.ceil(float(centres[-1]) + support * stretch), source)
    places = (torch.arange(first, last, dtype=torch.float64) + 0.5 - centres) / stretch
    weights = torch.where(places.abs() < support, kernel(places), 0.0)
    return slice(first, last), (weights / weights.sum(1, keepdim=True) * _FINE).round() / _FINE


def _triangle(x: torch.Tensor) -> torch.Tensor:
    return 1 - x.abs()


def _keys(x: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, far)


def _windowed_sinc(x: torch.Tensor) -> torch.Tensor:
    return torch.sinc(x) * torch.sinc(x / 3)


# Name -> half its width in pixels, and the kernel inside it: linear, Keys 1981 with a = -0.5, Lanczos with three lobes.
FILTERS: dict[str, tuple[float, Callable[[torch.Tensor], torch.Tensor]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _keys),
    "lanczos": (3.0, _windowed_sinc),
}


def center_crop(images: torch.Tensor, size: int, *, rounding: str) -> torch.Tensor:
    """The central square, (N, 3, size, size), in the range of the images.

    Arguments:
        images: (N, 3, H, W), in any range.
        size: side of the square, in pixels.
        rounding: where the crop starts when the margin d is odd: "half-even" at round(d / 2), as OpenAI's and
            torchvision's crops do, "floor" at d // 2, as transformers' does.

    Raises:
        ValueError: if the images are smaller than `size`, or `rounding` is neither.
    """
    rows, columns = (_central(side, size, rounding) for side in images.shape[-2:])
    return images[..., rows, columns]


def _central(side: int, crop: int, rounding: str) -> slice:
    margin = side - crop
    if margin < 0:
        raise ValueError(f"a side of {side} pixels is smaller than the crop, {crop}")
    starts = {"half-even": round(margin / 2), "floor": margin // 2}
    if rounding not in starts:
        raise ValueError(f"rounding is {rounding!r}, not one of {list(starts)}")
    return slice(starts[rounding], starts[rounding] + crop)


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(images - mean) / std, (N, C, H, W).

    Arguments:
        images: (N, C, H, W).
        mean, std: one number for each of the C channels.
    """
    shape = (-1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def to_pil(image: torch.Tensor) -> Image.Image:
    """The image as 8-bit RGB, clamped and rounded like diffusers' own conversion.

    Arguments:
        image: (3, H, W) in [0, 1].
    """
    levels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())
