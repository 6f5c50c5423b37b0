"""A denoiser call whose backward pass computes one part of the batch after another again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from draft_core.errors import SamplerError
from draft_core.sampling import seams
from draft_core.sampling.recomputing.selective import convolutions_small, kept_small, precision_now

POSITIONS = re.compile(r"(img|txt)_ids|.*rope.*")  # of tokens, the same for all images, unless with rows for each
TEXT = "encoder_hidden_states"  # with rows for each frame in networks that take frames as images
# How far a part may be from itself among others, of its norm: what other kernels make of it.
NEAR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

_whole = ContextVar("_whole", default=False)  # whether a batch is computed whose graph comes later


def is_recorded() -> bool:
    """Whether there is a way back from what is computed now, its graph being made at once or later."""
    return torch.is_grad_enabled() or _whole.get()


def recomputed_in_slices(slices: int | None, network: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of the denoiser's function; in the backward pass it is computed again for one slice after another.

    Values are those of the whole batch in every bit, gradients but for the last ones. Arguments with as many rows as
    the latents are divided, all others given whole; what comes out of a slice is compared with what the whole gave.

    Arguments:
        slices: of the batch's rows, each an image or a guidance branch of one; None makes one of each row. Of a single
            one the graph is kept small too, wide outputs of linear layers computed again.
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
        output: what came out, with zeros for its tensor.
    """

    def __init__(self, network: Any, function: Any, args: Any, kwargs: Any, rows: int, slices: int) -> None:
        self.network, self.function, self.given, self.slices = network, function, (args, kwargs), slices
        self.graph = partial(kept_small, linear=True) if slices == 1 else partial(convolutions_small, network)
        self.rows = rows
        arguments = {id(tensor): tensor for tensor in seams.tensors_in(self.given)}
        weights = list(network.parameters())
        self.recorded = [tensor for tensor in (*arguments.values(), *weights) if tensor.requires_grad]
        named = [value for name, value in kwargs.items() if POSITIONS.fullmatch(name)]
        places = {id(tensor) for tensor in seams.tensors_in(named) if tensor.ndim <= 2}
        self.divided = {key for key, tensor in arguments.items() if tensor.ndim and len(tensor) == rows} - places
        text = kwargs.get(TEXT)
        of_frames = isinstance(text, torch.Tensor) and len(text) > rows and len(text) % rows == 0
        self.of_frames = {id(text)} if of_frames else set[int]()
        types = {weight.dtype for weight in weights if weight.is_floating_point()}
        self.precision = precision_now(device := weights[0].device.type)
        if torch.is_autocast_enabled(device):
            types.add(torch.get_autocast_dtype(device))
        self.near = max(NEAR.get(dtype, NEAR[torch.bfloat16]) for dtype in types)
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
        self.output = seams.blank(output)
        first: torch.Tensor = seams.first_of(output, "sample")
        return first

    def gradients(self, output: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor | None]:
        """Of what is recorded, from that of the output."""
        sums: list[torch.Tensor | None] = [None] * len(self.recorded)
        for number in range(self.slices):
            pieces: dict[int, torch.Tensor] = {}
            args, kwargs = seams.mapped(partial(self._piece, pieces, number), self.given)
            again = self._again(args, kwargs)
            self._check(again.detach(), output[number :: self.slices])
            wanted = [pieces.get(id(tensor), tensor) for tensor in self.recorded]
            if not number:
                self._require_known(again, wanted)
            found = torch.autograd.grad(again, wanted, gradient[number :: self.slices], allow_unused=True)
            for place, (tensor, part) in enumerate(zip(self.recorded, found, strict=True)):
                if part is not None:
                    total = sums[place]
                    total = sums[place] = torch.zeros_like(tensor) if total is None else total
                    total[self._rows(tensor, number)] += part
        return sums

    def _rows(self, tensor: torch.Tensor, number: int) -> Any:
        """Which of an argument belong to a slice."""
        if id(tensor) in self.of_frames:
            frames = len(tensor) // self.rows
            return [row * frames + frame for row in range(number, self.rows, self.slices) for frame in range(frames)]
        return slice(number, None, self.slices) if id(tensor) in self.divided else ...

    def _piece(self, pieces: dict[int, torch.Tensor], number: int, tensor: torch.Tensor) -> torch.Tensor:
        """A slice's part of an argument, the same one wherever the argument is given."""
        if id(tensor) not in pieces:
            part = tensor.detach()[self._rows(tensor, number)]
            pieces[id(tensor)] = part.requires_grad_(tensor.requires_grad)
        return pieces[id(tensor)]

    def _again(self, args: Any, kwargs: Any) -> torch.Tensor:
        try:
            with torch.enable_grad(), self.precision(), self.graph():
                again: torch.Tensor = seams.first_of(self.function(*args, **kwargs), "sample")
                return again
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise _unsliced(self.network, f"raised {type(error).__name__} for a part of a batch") from error

    def _require_known(self, again: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
        """That nothing is trained but arguments and weights, whose gradient alone is passed on."""
        known, seen, open_ends = {id(leaf) for leaf in leaves}, set[Any](), [again.grad_fn]
        while open_ends:
            node = open_ends.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", leaves[0])) not in known:
                raise _unsliced(self.network, "is given a gradient by what is neither its argument nor its weight")
            open_ends += [before for before, _ in node.next_functions]

    def _check(self, again: torch.Tensor, before: torch.Tensor) -> None:
        """That a slice by itself gives what it gave among the others."""
        if before.is_meta:
            return
        apart = again.shape != before.shape or (again - before).float().norm() > self.near * before.float().norm()
        if apart:
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
