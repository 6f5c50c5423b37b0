"""A decode in tiles whose backward pass computes one tile after another again: never two of their graphs in memory.

A diffusers decoder that works in tiles calls its `decoder` for each of them, or for each frame of each, and blends what
comes out. Here these calls leave no graph. The backward pass first finds the gradient of every call's output, for which
blending alone is recorded, and then goes through the tiles. Calls that hand features on to the next frame, as Wan's do,
are one tile.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from draft_core.errors import RecipeError, SamplerError
from draft_core.sampling import seams
from draft_core.sampling.recomputing.selective import convolutions_small, precision_now


def check_tiles(network: Any) -> None:
    """That a decoder works in tiles, and was told to.

    Raises:
        SamplerError: otherwise.
    """
    where = type(network).__name__
    if not isinstance(getattr(network, "decoder", None), torch.nn.Module) or not hasattr(network, "use_tiling"):
        raise SamplerError(
            'it does not decode in tiles, as decode="tiles" asks',
            where=where,
            next='use decode="blocks" or decode="sliced"',
        )
    if not network.use_tiling:
        raise SamplerError(
            'decode="tiles" recomputes one tile after another, and it was not told to decode in tiles',
            where=where,
            next="set `tiled_decode` beside it; in Python call the decoder's enable_tiling() first",
        )


def tile_decode(pipe: Any, sizes: bool | Mapping[str, int] = True) -> None:
    """Lets a pipeline's decoder work in tiles.

    Arguments:
        sizes: arguments of diffusers' `enable_tiling` of this decoder; True for its own.

    Raises:
        RecipeError: if it cannot, or takes no such sizes.
    """
    tile(getattr(pipe, "vae", None), sizes, of=type(pipe).__name__)


def tile(network: Any, sizes: bool | Mapping[str, int], *, of: str) -> None:
    """The same of a decoder; `of` is its pipeline's class."""
    where = "model.tiled_decode"
    if (enable := getattr(network, "enable_tiling", None)) is None or not hasattr(network, "use_tiling"):
        raise RecipeError(
            f"the decoder of {of} cannot work in tiles",
            where=where,
            next="leave it out; `model.decode: sliced` saves memory too",
        )
    given = {} if isinstance(sizes, bool) else dict(sizes)
    taken = [name for name in inspect.signature(enable).parameters if name != "use_tiling"]
    if unknown := [name for name in given if name not in taken]:
        raise RecipeError(
            f"{type(network).__name__} takes no {unknown[0]}",
            where=where,
            next=f"it takes {', '.join(taken)}" if taken else "its tiles have a size of their own: write true",
        )
    for name, size in given.items():
        kind = "temporal" if name.endswith("frames") else "spatial"
        ratio = getattr(network, f"{kind}_compression_ratio", 1) if name.startswith("tile_sample_") else 1
        if size % ratio:
            raise RecipeError(
                f"{name} {size} is no multiple of {ratio}, what {type(network).__name__} makes of one latent",
                where=where,
                next=f"give {ratio * max(1, round(size / ratio))}",
            )
    enable(**given)
    sides = ((name, name.replace("_min_", "_stride_")) for name in taken if "_min_" in name)
    for least, stride in sides:
        if getattr(network, stride, 0) > getattr(network, least, float("inf")):
            raise RecipeError(
                f"tiles of {least} {getattr(network, least)} every {getattr(network, stride)} leave gaps",
                where=where,
                next=f"set {stride} to that or less",
            )


def decoded_by_tiles(network: Any, decode: Callable[..., Any], latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The output of `decode` in every bit, for one image or video after another.

    Arguments:
        network: whose `decoder` it calls for each tile.
        latents: (N, ...).

    Raises:
        SamplerError: if the decoder is to be trained, or gives more than a tensor for a tile, which would be lost.
    """
    if not torch.is_grad_enabled():
        return decode(latents, *args, **kwargs)
    if any(weight.requires_grad for weight in network.parameters()):
        raise SamplerError(
            'decode="tiles" gives the latents a gradient and the weights none, and the decoder is to be trained',
            where=type(network).__name__,
            next='freeze it, or use decode="blocks"',
        )
    if not latents.requires_grad:
        return decode(latents, *args, **kwargs)
    found = [_Decode(network, decode, args, kwargs) for _ in latents]
    images = [_Tiled.apply(piece, call) for piece, call in zip(torch.split(latents, 1), found, strict=True)]
    return seams.with_first(found[0].output, "sample", torch.cat(images))


@dataclass(frozen=True)
class _Call:
    """One call of the decoder's network: what went in beside its input, and what came out, without a graph.

    Attributes:
        args, kwargs: lists of features in them are as long as they were, and empty.
        begins: whether no features were handed to it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor
    begins: bool


class _Decode:
    """One decode, and how its calls are made again."""

    def __init__(
        self, network: Any, decode: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.network, self.decode, self.args, self.kwargs = network, decode, args, kwargs
        self.calls: list[_Call] = []
        self.output: Any = None
        self.precision = precision_now(next(network.parameters()).device.type)

    def recorded(self, latents: torch.Tensor) -> torch.Tensor:
        """The images, (1, ...); every call is remembered."""

        def noted(forward: Any, tile: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            handed = features_in(args, kwargs)
            begins = all(feature is None for values in handed for feature in values)
            kept = _with_features(args, kwargs, _blank(handed))
            output = forward(tile, *args, **kwargs)
            if not isinstance(output, torch.Tensor):
                raise SamplerError(
                    'its decoder gives more than a tensor for a tile, which decode="tiles" cannot compute again',
                    where=type(self.network).__name__,
                    next='use decode="sliced" or decode="checkpointed"',
                )
            self.calls.append(_Call(*kept, output, begins))
            return output.clone()  # diffusers blends in place

        with seams.replaced(self.network.decoder, "forward", noted):
            self.output = self.decode(latents, *self.args, **self.kwargs)
        images: torch.Tensor = seams.first_of(self.output, "sample")
        return images

    def gradient(self, latents: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Of the latents, from that of the images."""
        inputs: list[torch.Tensor] = []
        outputs = [call.output.detach().requires_grad_() for call in self.calls]

        def given(_: Any, tile: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            inputs.append(tile)
            return outputs[len(inputs) - 1].clone()

        with torch.enable_grad(), self.precision():
            start = latents.detach().requires_grad_()
            with seams.replaced(self.network.decoder, "forward", given):
                images = seams.first_of(self.decode(start, *self.args, **self.kwargs), "sample")
            blended = torch.autograd.grad(images, outputs, gradient)
            del images
            behind: list[torch.Tensor] = []
            for tile in self._tiles():
                behind += self._of_tile([inputs[number] for number in tile], tile, blended)
        (found,) = torch.autograd.grad(inputs, start, behind)
        return found

    def _tiles(self) -> list[range]:
        """The numbers of the calls of each tile."""
        begins = [number for number, call in enumerate(self.calls) if call.begins]
        return [range(first, last) for first, last in zip(begins, [*begins[1:], len(self.calls)], strict=True)]

    def _of_tile(
        self, inputs: Sequence[torch.Tensor], numbers: range, gradients: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The gradients of what went into a tile's calls, made once more with a graph."""
        calls = [self.calls[number] for number in numbers]
        features = _blank(features_in(calls[0].args, calls[0].kwargs))  # which one call hands to the next
        again = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = []
        with convolutions_small(self.network):
            for call, tensor in zip(calls, again, strict=True):
                args, kwargs = _with_features(call.args, call.kwargs, features)
                outputs.append(self.network.decoder(tensor, *args, **kwargs))
        return torch.autograd.grad(outputs, again, [gradients[number] for number in numbers])


class _Tiled(torch.autograd.Function):
    """A decode without a graph, and its backward pass."""

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, decode: _Decode) -> torch.Tensor:
        ctx.save_for_backward(latents)
        ctx.decode = decode
        return decode.recorded(latents)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (latents,) = ctx.saved_tensors
        return ctx.decode.gradient(latents, *gradients), None


def _are_features(value: Any) -> bool:
    """Whether an argument is a list in which a call finds features of the frames before and leaves its own."""
    return isinstance(value, list) and not (value and all(isinstance(number, int) for number in value))


def features_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[list[Any]]:
    """The lists among a decoder call's arguments in which it finds features of the frames before and leaves its own."""
    return [value for value in (*args, *kwargs.values()) if _are_features(value)]


def _blank(lists: Sequence[list[Any]]) -> list[list[Any]]:
    """Lists of the same lengths without features."""
    return [[None] * len(values) for values in lists]


def _with_features(
    args: Sequence[Any], kwargs: Mapping[str, Any], features: Sequence[list[Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with these lists in the places of theirs, and with copies of other lists, which calls change."""
    left = iter(features)

    def filled(value: Any) -> Any:
        if _are_features(value):
            return next(left)
        return list(value) if isinstance(value, list) else value

    return tuple(map(filled, args)), {name: filled(value) for name, value in kwargs.items()}
