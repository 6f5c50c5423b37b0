"""A denoiser call whose backward pass computes one part of the batch after another again."""

from __future__ import annotations

import math
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from draft_core.errors import SamplerError
from draft_core.sampling import seams
from draft_core.sampling.recomputing.selective import convolutions_small, precision_now

POSITIONS = ("img_ids", "txt_ids")  # (tokens, axes), the same for all images

_whole = ContextVar("_whole", default=False)  # whether a batch is computed whose graph comes later


def is_recorded() -> bool:
    """Whether there is a way back from what is computed now, its graph being made at once or later."""
    return torch.is_grad_enabled() or _whole.get()


def recomputed_in_slices(slices: int | None, network: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of the denoiser's function; in the backward pass it is computed again for one slice after another.

    Values are those of the whole batch in every bit, gradients but for the last ones. Arguments with as many rows as
    the latents are divided, all others given whole; what comes out of a slice is compared with what the whole gave.

    Arguments:
        slices: of the batch's rows, each an image or a guidance branch of one; None makes one of each row.
        network: a denoiser.
        function: its `forward`, and what it is given.

    Raises:
        SamplerError: if it takes a list of latents, or gives more than one tensor.
    """
    latents = seams.denoiser_input(args, kwargs)
    if not isinstance(latents, torch.Tensor):
        raise _unsliced(network, "takes its latents as a list")
    rows = len(latents)
    call = _Call(network, function, args, kwargs, rows, min(slices or rows, rows))
    first = _Slices.apply(call, *call.recorded)
    return seams.with_first(call.output, "sample", first)


class _Call:
    """A denoiser call, and how one slice of it is computed again.

    Attributes:
        recorded: what goes in and has a gradient, arguments and weights.
        output: what came out, without its tensor.
    """

    def __init__(self, network: Any, function: Any, args: Any, kwargs: Any, rows: int, slices: int) -> None:
        self.network, self.function, self.given, self.slices = network, function, (args, kwargs), slices
        self.precision = precision_now(next(network.parameters()).device.type)
        arguments = seams.tensors_in(self.given)
        self.recorded = [tensor for tensor in (*arguments, *network.parameters()) if tensor.requires_grad]
        places = {id(kwargs[name]) for name in POSITIONS if getattr(kwargs.get(name), "ndim", 0) == 2}
        self.divided = {id(tensor) for tensor in arguments if tensor.ndim and len(tensor) == rows} - places
        self.output: Any = None

    def whole(self) -> torch.Tensor:
        """What came out."""
        args, kwargs = self.given
        token = _whole.set(True)
        try:
            output = self.function(*args, **kwargs)
        finally:
            _whole.reset(token)
        if len(seams.tensors_in(output)) != 1:
            raise _unsliced(self.network, "gives more than one tensor")
        self.output = seams.with_first(output, "sample", None)
        first: torch.Tensor = seams.first_of(output, "sample")
        return first

    def gradients(self, output: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor | None]:
        """Of what is recorded, from that of the output."""
        sums: list[torch.Tensor | None] = [None] * len(self.recorded)
        for number in range(self.slices):
            leaves = {id(tensor): tensor for tensor in self.recorded}
            args, kwargs = seams.mapped(partial(self._piece, leaves, number), self.given)
            with torch.enable_grad(), self.precision(), convolutions_small(self.network):
                again = seams.first_of(self.function(*args, **kwargs), "sample")
            self._check(again.detach(), output[number :: self.slices])
            wanted = [leaves[id(tensor)] for tensor in self.recorded]
            found = torch.autograd.grad(again, wanted, gradient[number :: self.slices], allow_unused=True)
            for place, (tensor, part) in enumerate(zip(self.recorded, found, strict=True)):
                if part is not None:
                    total = sums[place]
                    total = sums[place] = torch.zeros_like(tensor) if total is None else total
                    total[self._rows(tensor, number)] += part
        return sums

    def _rows(self, tensor: torch.Tensor, number: int) -> Any:
        """Which of an argument belong to a slice."""
        return slice(number, None, self.slices) if id(tensor) in self.divided else ...

    def _piece(self, leaves: dict[int, torch.Tensor], number: int, tensor: torch.Tensor) -> torch.Tensor:
        """A slice's part of an argument, noted if its gradient is wanted."""
        part = tensor.detach()[self._rows(tensor, number)]
        if id(tensor) in leaves:
            leaves[id(tensor)] = part.requires_grad_()
        return part

    def _check(self, again: torch.Tensor, before: torch.Tensor) -> None:
        """That a slice by itself gives what it gave among the others."""
        if before.is_meta:
            return
        near = 20 * math.sqrt(torch.finfo(before.dtype).eps) * before.abs().max()
        if again.shape != before.shape or (again - before).abs().max() > near:
            raise _unsliced(self.network, "gives another output for a part of a batch")


class _Slices(torch.autograd.Function):
    """A denoiser call that keeps what goes in, and is computed again one slice after another."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *recorded: torch.Tensor) -> torch.Tensor:
        output = call.whole()
        ctx.call = call
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (output,) = ctx.saved_tensors
        return None, *ctx.call.gradients(output, gradient)


def _unsliced(network: Any, problem: str) -> SamplerError:
    return SamplerError(
        f"it {problem}, and cannot be computed again part by part",
        where=type(network).__name__,
        next="use gradient_checkpointing: true",
    )
