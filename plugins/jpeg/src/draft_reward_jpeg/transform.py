"""libjpeg's path from pixels to DCT coefficients and back, exact in its values and linear in its gradient.

The encoder works in integers: it rounds the pixels, the colour conversion, the averaged chroma and both
passes of the cosine transform. Its values are reproduced to the last bit; the gradient is that of the same
path without rounding, a linear map. Imports `tables`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from draft_reward_jpeg.tables import BLOCK, ZIGZAG, quantisation_steps

# Horizontal and vertical factor by which chroma is coarser than luma.
CHROMA_FACTORS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}

# JFIF 1.02: RGB -> Y, Cb, Cr, and libjpeg's fixed-point version of it with 16 fractional bits.
_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_MIDDLE = 128

# libjpeg's `jfdctint.c` (Loeffler, Ligtenberg and Moschytz 1989) as a matrix: one pass, 13 fractional bits.
_INTEGER_DCT = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633),
    (8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437),
    (4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433),
    (2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260),
)
_PASS_SHIFTS = (11, 15)  # the first pass keeps two fractional bits, the second drops them
_DCT_SCALE = 8  # libjpeg's transform is eight times the orthonormal one


class Components(NamedTuple):
    """One tensor for luma (B, 1, ...) and one for the two chroma components (B, 2, ...)."""

    luma: Tensor
    chroma: Tensor


class Coefficients(NamedTuple):
    """Coefficients in units of a pixel level, and what the encoder stores for them.

    `values`: orthonormal DCT of pixels in 0..255, (B, C, blocks, 64) float, zigzag order, blocks in raster
    order; the encoder's integers with the gradient of the linear map. `levels`: the same divided by
    `steps` (64,) and rounded as the encoder does, whole numbers without gradient.
    """

    values: Tensor
    levels: Tensor
    steps: Tensor


def coefficients(images: Tensor, quality: int, subsampling: str) -> tuple[Coefficients, Coefficients]:
    """Luma and chroma coefficients of images (B, 3, H, W) in [0, 1], of any height and width.

    Values outside [0, 1] are clamped, as a saved file would be, and keep their gradient.
    """
    factors = CHROMA_FACTORS[subsampling]
    constants = _constants(quality, images.device, images.dtype)
    linear = _linear_planes(images, factors)
    exact = _encoder_planes(images.detach(), factors)
    return (
        _transform(linear.luma, exact.luma, constants.steps[0], constants.basis),
        _transform(linear.chroma, exact.chroma, constants.steps[1], constants.basis),
    )


def decode(values: Components, quality: int, subsampling: str, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], unrounded and unclamped, from coefficient values in zigzag order.

    Chroma is enlarged by the triangle filter that libjpeg calls fancy upsampling.
    """
    across, down = CHROMA_FACTORS[subsampling]
    constants = _constants(quality, values.luma.device, values.luma.dtype)
    luma = _from_blocks(values.luma @ constants.basis, height, width)
    chroma = _from_blocks(values.chroma @ constants.basis, _ceil_div(height, down), _ceil_div(width, across))
    if across * down > 1:
        chroma = F.interpolate(chroma, scale_factor=(down, across), mode="bilinear", align_corners=False)
    ycbcr = torch.cat([luma + _MIDDLE, chroma[..., :height, :width]], dim=1)
    return torch.einsum("oc,bchw->bohw", constants.to_rgb, ycbcr) / 255


class _Constants(NamedTuple):
    basis: Tensor  # (64 coefficients in zigzag order, 64 pixels), orthonormal
    steps: Tensor  # (2, 64) quantisation steps of luma and chroma, zigzag order
    to_rgb: Tensor  # (3, 3)


@lru_cache(maxsize=32)
def _constants(quality: int, device: torch.device, dtype: torch.dtype) -> _Constants:
    # A tensor born in inference mode could never meet autograd again, and these outlive the call.
    with torch.inference_mode(False):
        frequency = torch.arange(BLOCK, dtype=torch.float64)
        cosine = torch.cos((2 * frequency + 1) * frequency[:, None] * math.pi / 16) / 2
        cosine[0] = math.sqrt(1 / 8)
        basis = torch.kron(cosine, cosine)[ZIGZAG]
        steps = torch.tensor(quantisation_steps(quality), dtype=torch.float64)
        to_rgb = torch.linalg.inv(torch.tensor(_YCBCR, dtype=torch.float64))
        return _Constants(*(each.to(device=device, dtype=dtype) for each in (basis, steps, to_rgb)))


def _transform(linear: Tensor, exact: Tensor, steps: Tensor, basis: Tensor) -> Coefficients:
    values = _to_blocks(linear).flatten(-2) @ basis.T
    scaled = _integer_dct(_to_blocks(exact)).to(linear.dtype)
    # Integer division as in `jcdctmgr.c`; the quotients are small enough for float32 to floor them right.
    levels = torch.floor((scaled.abs() + steps * (_DCT_SCALE / 2)) / (steps * _DCT_SCALE)) * scaled.sign()
    return Coefficients(values + (scaled / _DCT_SCALE - values).detach(), levels, steps)


def _linear_planes(images: Tensor, factors: tuple[int, int]) -> Components:
    """The encoder's planes, padded to whole blocks and centred on zero, without any rounding."""
    matrix = images.new_tensor(_YCBCR)
    ycbcr = torch.einsum("oc,bchw->bohw", matrix, images * 255)
    return Components(_pad_to_blocks(ycbcr[:, :1] - _MIDDLE), _downsample(ycbcr[:, 1:], factors))


def _encoder_planes(images: Tensor, factors: tuple[int, int]) -> Components:
    """The planes exactly as libjpeg has them, int32, padded to whole blocks and centred on zero."""
    red, green, blue = (images * 255).round().clamp(0, 255).to(torch.int32).unbind(1)
    half = 1 << 15
    y, cb, cr = (
        (_fixed(r) * red + _fixed(g) * green + _fixed(b) * blue + rounding) >> 16
        for (r, g, b), rounding in zip(_YCBCR, (half, half - 1, half - 1), strict=True)
    )
    return Components(_pad_to_blocks(y[:, None] - _MIDDLE), _downsample(torch.stack([cb, cr], dim=1), factors))


def _fixed(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) * 65536 + 0.5), value))


def _downsample(chroma: Tensor, factors: tuple[int, int]) -> Tensor:
    """Means over `factors`, padded to whole blocks as libjpeg does: columns before the mean, rows after it."""
    across, down = factors
    batch, planes, height, width = chroma.shape
    columns = _ceil_div(width, BLOCK * across) * BLOCK
    if across * down > 1:
        rows = _ceil_div(height, down)
        chroma = _extend(chroma, rows * down, columns * across)
        cells = chroma.view(batch, planes, rows, down, columns, across)
        if chroma.is_floating_point():
            chroma = cells.mean((3, 5))
        else:
            # libjpeg alternates what it adds before the shift (1, 2 or 0, 1), so that halves do not drift.
            bias = torch.arange(columns, device=chroma.device, dtype=torch.int32) % 2 + (down - 1)
            chroma = (cells.sum((3, 5), dtype=torch.int32) + bias) >> (across * down // 2)
    return _pad_to_blocks(chroma)


def _pad_to_blocks(plane: Tensor) -> Tensor:
    height, width = plane.shape[-2:]
    return _extend(plane, _ceil_div(height, BLOCK) * BLOCK, _ceil_div(width, BLOCK) * BLOCK)


def _extend(plane: Tensor, height: int, width: int) -> Tensor:
    """The plane continued by its last row and column; of any dtype, which `F.pad` does not offer."""
    down, right = height - plane.shape[-2], width - plane.shape[-1]
    if right:
        plane = torch.cat([plane, plane[..., -1:].expand(*plane.shape[:-1], right)], dim=-1)
    if down:
        plane = torch.cat([plane, plane[..., -1:, :].expand(*plane.shape[:-2], down, width)], dim=-2)
    return plane


def _to_blocks(plane: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, blocks in raster order, 8, 8)."""
    batch, planes, height, width = plane.shape
    tiles = plane.reshape(batch, planes, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return tiles.transpose(3, 4).flatten(2, 3)


def _from_blocks(blocks: Tensor, height: int, width: int) -> Tensor:
    """(B, C, blocks, 64 pixels) -> (B, C, H, W), the padding cut off."""
    batch, planes = blocks.shape[:2]
    rows, columns = _ceil_div(height, BLOCK), _ceil_div(width, BLOCK)
    tiles = blocks.reshape(batch, planes, rows, columns, BLOCK, BLOCK).transpose(3, 4)
    return tiles.reshape(batch, planes, rows * BLOCK, columns * BLOCK)[..., :height, :width]


def _integer_dct(blocks: Tensor) -> Tensor:
    """(..., 8, 8) int32 -> (..., 64) int32 in zigzag order, eight times the orthonormal DCT, rounded twice."""
    matrix = torch.tensor(_INTEGER_DCT, dtype=torch.int32, device=blocks.device)
    # Row and column index come first, so that each multiplication runs over all blocks at once. Integers,
    # because float64 does not exist on every device and float32 products may be cut short by the hardware.
    x = blocks.flatten(0, -3).permute(2, 1, 0).contiguous()
    for shift in _PASS_SHIFTS:
        total = matrix[:, 0, None, None] * x[0]
        for index in range(1, BLOCK):
            total = torch.addcmul(total, matrix[:, index, None, None], x[index])
        x = ((total + (1 << (shift - 1))) >> shift).transpose(0, 1)
    order = torch.tensor(ZIGZAG, device=blocks.device)
    return x.transpose(0, 1).reshape(BLOCK * BLOCK, -1)[order].T.reshape(*blocks.shape[:-2], BLOCK * BLOCK)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
