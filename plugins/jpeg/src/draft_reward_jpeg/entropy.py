"""How many bits libjpeg's Huffman coder spends on quantised coefficients, and what each one would save.

`count_bits` is the exact count. It is a staircase, whose derivative is zero almost everywhere. The gradient
comes from `crossings`: for every stored number, the bits that the file would gain or lose if that number alone
crossed the threshold to the next smaller or larger size, spread over the distance to that threshold. Nearby
thresholds alone would be nearly as good for small steps, but leave a large number without any gradient.
Imports `tables`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from draft_reward_jpeg.tables import BLOCK, ac_bits, dc_bits, end_of_block_bits

# Scale of the jitter that turns the staircase into a slope, in levels of an 8-bit pixel. The one number of
# the gradient that was chosen by trial; it matters little between 3 and 6 (figures in the README).
JITTER = 4.0

_END = BLOCK * BLOCK  # one past the last coefficient of a block
_LARGEST_AC_SIZE = 10
_LARGEST_DC_SIZE = 11


class Scan(NamedTuple):
    """The order in which a component's blocks are stored.

    `order`: raster index of each block in turn. `padding`: how many empty blocks stand between them.
    """

    order: Tensor
    padding: int


class Crossings(NamedTuple):
    """What each stored number could save or cost by changing its size, (B, C, blocks, 64), frozen.

    `inner` and `outer`: the magnitudes, in the number's own unit, at which its size changes by one.
    `inner_gain`: bits now minus bits one size smaller. `outer_gain`: bits one size larger minus bits now.
    """

    inner: Tensor
    outer: Tensor
    inner_gain: Tensor
    outer_gain: Tensor

    def expected_bits(self, magnitudes: Tensor) -> Tensor:
        """Expected bits (B,), up to a constant, when Cauchy noise of scale `JITTER` jitters each number.

        A sum of the noise's cumulative distributions, centred on these thresholds and blind to further ones;
        every number is jittered alone, the others keep their bits. The slope in a magnitude
        is gain * JITTER / (JITTER^2 + distance^2) / pi: bits over squared distance, which is how a budget
        of squared pixel error is best spent.
        """
        rise = self.inner_gain * torch.atan((magnitudes - self.inner) / JITTER)
        rise = rise + self.outer_gain * torch.atan((magnitudes - self.outer) / JITTER)
        return rise.flatten(1).sum(1) / math.pi

    def only_savings(self) -> Crossings:
        """Without the thresholds beyond which the file would grow: nothing is spent on staying away."""
        return self._replace(inner_gain=self.inner_gain.clamp(min=0), outer_gain=self.outer_gain.clamp(max=0))

    def only_costs(self) -> Crossings:
        """Without the thresholds beyond which the file would shrink."""
        return self._replace(inner_gain=self.inner_gain.clamp(max=0), outer_gain=self.outer_gain.clamp(min=0))


def count_bits(numbers: Tensor, scan: Scan, component: int) -> Tensor:
    """Bits that a component's blocks take in the file, (B,) whole numbers.

    Arguments:
        numbers: `stored_numbers` of the levels, (B, C, blocks, 64).
        scan: how the blocks are stored.
        component: 0 for luma's Huffman tables, 1 for chroma's.
    """
    code = _code(component, numbers.device)
    size = _size(numbers)
    dc, ac = code.dc[size[..., 0].long()], size[..., 1:]
    bits = code.of_ac(_places(ac) - _nonzero_before(ac) - 1, ac)
    ends = (ac[..., -1] == 0) * code.end_of_block
    padding = scan.padding * (code.dc_of_zero + code.end_of_block)
    return (dc + ends + bits.sum(-1)).flatten(1).sum(1) + padding


def stored_numbers(coefficients: Tensor, scan: Scan) -> Tensor:
    """What is coded of (B, C, blocks, 64), of values or levels: each DC minus the last, and the AC.

    Blocks come out in the order in which they are stored.
    """
    ordered = coefficients.index_select(-2, scan.order)
    dc = torch.diff(ordered[..., :1], dim=-2, prepend=torch.zeros_like(ordered[..., :1, :1]))
    return torch.cat([dc, ordered[..., 1:]], dim=-1)


def crossings(numbers: Tensor, steps: Tensor, component: int) -> Crossings:
    """The thresholds around each of the stored whole `numbers`, and the bits at stake there."""
    code = _code(component, numbers.device)
    size = _size(numbers)
    dc_inner, dc_outer = _dc_gains(size[..., 0], code)
    ac_inner, ac_outer = _ac_gains(size[..., 1:], code)
    inner_gain = torch.cat([dc_inner[..., None], ac_inner], dim=-1)
    outer_gain = torch.cat([dc_outer[..., None], ac_outer], dim=-1)
    # A number of size s lies from 2^(s-1) to 2^s - 1. Zero has no smaller size, and the same above it on
    # either side: its inner threshold is the mirror image of the outer one.
    zero, outer = size == 0, torch.exp2(size) - 0.5
    inner = torch.where(zero, -outer, torch.exp2(size - 1) - 0.5)
    inner_gain = torch.where(zero, -outer_gain, inner_gain)
    return Crossings(inner * steps, outer * steps, inner_gain, outer_gain)


def scan_order(component: int, height: int, width: int, factors: tuple[int, int], device: torch.device) -> Scan:
    """How the blocks of an image of `height` and `width` pixels are stored.

    The file goes through coding units, each of one block of either chroma component and the `factors` (across,
    down) blocks of luma above it. A unit that reaches over the edge is filled with empty luma blocks, which
    repeat the DC before them.
    """
    across, down = factors
    unit_rows, unit_columns = -(-height // (BLOCK * down)), -(-width // (BLOCK * across))
    if component == 1:
        return Scan(torch.arange(unit_rows * unit_columns, device=device), 0)
    row = torch.arange(-(-height // BLOCK), device=device)[:, None]
    column = torch.arange(-(-width // BLOCK), device=device)
    unit = row // down * unit_columns + column // across
    turn = (unit * down + row % down) * across + column % across
    return Scan(turn.flatten().argsort(), unit_rows * unit_columns * across * down - turn.numel())


class _Code(NamedTuple):
    """The bits of every symbol of one kind of component."""

    dc: Tensor  # (12,) by size of the difference
    ac: Tensor  # (64 * 12,) by zeros before a coefficient and its size; sizes 0 and 11 are explained below
    dc_of_zero: int
    end_of_block: int

    def of_ac(self, zeros_before: Tensor, size: Tensor) -> Tensor:
        return self.ac.take((zeros_before * _AC_COLUMNS + size).long())


# The end of a block is treated as one more coefficient, in place 64 and of a size that no other has. It
# costs nothing right after a coefficient in place 63. A zero, of size 0, costs nothing by itself.
_END_SIZE = _LARGEST_AC_SIZE + 1
_AC_COLUMNS = _END_SIZE + 1


@lru_cache(maxsize=8)
def _code(component: int, device: torch.device) -> _Code:
    end = end_of_block_bits(component)
    # A tensor born in inference mode could never meet autograd again, and these outlive the call.
    with torch.inference_mode(False):
        ac = torch.zeros(_END, _AC_COLUMNS, dtype=torch.float32)
        ac[: _END - 1, :_END_SIZE] = torch.tensor(ac_bits(component))
        ac[1:, _END_SIZE] = end
        dc = torch.tensor(dc_bits(component), dtype=torch.float32)
        return _Code(dc.to(device), ac.flatten().to(device), dc_bits(component)[0], end)


def _size(levels: Tensor) -> Tensor:
    """The number of binary digits of whole numbers, 0 for 0; the half keeps powers of two off the edge."""
    return torch.floor(torch.log2(levels.abs() + 0.5)) + 1


def _places(ac: Tensor) -> Tensor:
    return torch.arange(1, _END, device=ac.device, dtype=ac.dtype)


def _nonzero_before(ac: Tensor) -> Tensor:
    """Place of the nearest non-zero coefficient before each of (..., 63) sizes, 0 (the DC) if there is none."""
    seen = torch.where(ac != 0, _places(ac), 0).cummax(-1).values
    return F.pad(seen[..., :-1], (1, 0))


def _nonzero_after(ac: Tensor) -> Tensor:
    """Place of the nearest non-zero coefficient after each of (..., 63), 64 (the end) if there is none."""
    coming = torch.where(ac != 0, _places(ac), _END).flip(-1).cummin(-1).values.flip(-1)
    return F.pad(coming[..., 1:], (0, 1), value=_END)


def _ac_gains(size: Tensor, code: _Code) -> tuple[Tensor, Tensor]:
    """Bits of each AC coefficient's size minus those of the size below, and of the size above minus those.

    All others stay, but what follows a coefficient costs more bits if it is not there to interrupt the zeros.
    """
    place, before, after = _places(size), _nonzero_before(size), _nonzero_after(size)
    zeros = place - before - 1
    next_size = F.pad(size, (0, 1), value=_END_SIZE).gather(-1, after.long() - 1)
    rest_if_nonzero = code.of_ac(after - place - 1, next_size)
    rest_if_zero = code.of_ac(after - before - 1, next_size)

    def bits(size: Tensor) -> Tensor:
        return torch.where(size > 0, code.of_ac(zeros, size) + rest_if_nonzero, rest_if_zero)

    now = bits(size)
    return now - bits((size - 1).clamp(min=0)), bits((size + 1).clamp(max=_LARGEST_AC_SIZE)) - now


def _dc_gains(size: Tensor, code: _Code) -> tuple[Tensor, Tensor]:
    """As `_ac_gains`, for DC differences; each counts by itself, and its gradient reaches both its blocks."""
    size = size.long()
    now = code.dc[size]
    return now - code.dc[(size - 1).clamp(min=0)], code.dc[(size + 1).clamp(max=_LARGEST_DC_SIZE)] - now
