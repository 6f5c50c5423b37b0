"""Less of a frozen network kept for the backward pass: values the same in every bit, gradients but for the last ones.

A LoRA's gradient needs little of what the network around it computes. PyTorch keeps the input of every convolution,
which only the gradient of its weight needs, and of norms, activations and casts both ends, although one end gives the
other at once. Inside `kept_small` convolutions of frozen weights keep their weight alone, and what is cheap to compute
is computed again; `convolutions_small` does the first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# The gradient of a convolution's input is the transposed convolution of its output's gradient.
TRANSPOSED: dict[Any, Callable[..., torch.Tensor]] = {
    torch.conv1d: torch.conv_transpose1d,
    torch.conv2d: torch.conv_transpose2d,
    torch.conv3d: torch.conv_transpose3d,
}
CONVOLUTIONS: dict[Any, Any] = {nn.Conv1d: torch.conv1d, nn.Conv2d: torch.conv2d, nn.Conv3d: torch.conv3d}
# Their own backward pass keeps their input, so that keeping the output too is what can be saved.
FROM_THEIR_INPUT = frozenset(
    (
        *(functional.group_norm, functional.layer_norm, functional.rms_norm, functional.silu, functional.gelu),
        *(torch.group_norm, torch.layer_norm, torch.rms_norm),
    )
)
# Computed again where that keeps less: a wider copy from the narrower one, a modulated norm from the norm.
FROM_LESS = frozenset(
    (torch.Tensor.to, torch.Tensor.float, torch.Tensor.type_as, torch.Tensor.mul, torch.Tensor.add, torch.Tensor.type)
)
WATCHED = FROM_THEIR_INPUT | FROM_LESS
RECIPE = "_draft_core_recipe"  # the attribute of a tensor that says how it is made again


@contextmanager
def kept_small(*, linear: bool = False) -> Iterator[None]:
    """What autograd records inside keeps less memory until its backward pass.

    Convolutions of weights that are trained are left as they are. Not inside `torch.utils.checkpoint`, whose own hooks
    would then see nothing.

    Arguments:
        linear: compute again what frozen linear layers give that widen their input, as feed-forward layers begin: more
            than next to nothing, and a third of what would be kept of a transformer.
    """
    with _Watch(linear), torch.autograd.graph.saved_tensors_hooks(_kept, _again):
        yield


@contextmanager
def convolutions_small(network: nn.Module) -> Iterator[None]:
    """The network's frozen convolutions keep no input inside; nothing is computed again, and nothing else changes.

    Its layers are asked, and not a `TorchFunctionMode`, through which every operation would go: a twentieth of a call.
    """
    layers = [
        (layer, func)
        for layer in network.modules()
        for kind, func in CONVOLUTIONS.items()
        if isinstance(layer, kind) and type(layer)._conv_forward is kind._conv_forward and layer.padding_mode == "zeros"
    ]
    for layer, func in layers:
        layer.__dict__["_conv_forward"] = partial(_layer_forward, layer, func)
    try:
        yield
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("_conv_forward", None)


def precision_now(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What makes a context with the autocast of this moment, for what is computed again later."""
    if not torch.is_autocast_enabled(device):
        return nullcontext
    return partial(torch.autocast, device, torch.get_autocast_dtype(device))


def _layer_forward(layer: Any, func: Any, input: Any, weight: Any, bias: Any) -> torch.Tensor:
    return _convolution(func, input, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class _Watch(TorchFunctionMode):
    """Puts convolutions that keep less in the place of PyTorch's, and notes how cheap outputs are made."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.watched = WATCHED | {functional.linear} if linear else WATCHED

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result."""
        kwargs = kwargs or {}
        if func in TRANSPOSED:
            return _convolution(func, *args, **kwargs)
        output = func(*args, **kwargs)
        if func in self.watched and output.requires_grad and _is_cheap(func, args, output):
            setattr(output, RECIPE, _Recipe(func, args, kwargs, output))
        return output


def _is_cheap(func: Any, args: Sequence[Any], output: torch.Tensor) -> bool:
    """Whether keeping what went in takes less memory than keeping what came out."""
    if func in FROM_THEIR_INPUT:
        return True
    if func is functional.linear:
        return len(args) > 1 and not args[1].requires_grad and 2 * args[0].nbytes <= output.nbytes
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors if _recipe(tensor) is None) < output.nbytes


def _convolution(
    func: Any,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or isinstance(padding, str) or not (input.requires_grad and torch.is_grad_enabled()):
        output: torch.Tensor = func(input, weight, bias, stride, padding, dilation, groups)
        return output
    options = *(_each(option, weight.ndim - 2) for option in (stride, padding, dilation)), groups
    output = _FrozenConvolution.apply(func, input, weight, bias, *options)
    return output


def _each(option: Any, dimensions: int) -> tuple[int, ...]:
    """An option of a convolution, one number for each dimension."""
    return (option,) * dimensions if isinstance(option, int) else tuple(option) * (dimensions // len(option))


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weight is not trained, so that its gradient needs no input, only the input's shape."""

    @staticmethod
    def forward(
        ctx: Any, func: Any, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
    ) -> Any:
        # As many tensors as PyTorch's own keeps, and of their shapes: a checkpoint inside the network compares.
        ctx.save_for_backward(input.new_empty(1).expand(input.shape), weight)
        ctx.func, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = func, stride, padding, dilation, groups
        return func(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        blank, weight = ctx.saved_tensors
        dimensions = len(ctx.stride)  # the batch is missing from some calls
        reached = (  # what of the input the convolution has seen
            (size - 1) * stride - 2 * padding + dilation * (width - 1) + 1
            for size, stride, padding, dilation, width in zip(
                *(gradient.shape[-dimensions:], ctx.stride, ctx.padding, ctx.dilation, weight.shape[2:]), strict=True
            )
        )
        beyond = [size - seen for size, seen in zip(blank.shape[-dimensions:], reached, strict=True)]
        # Under autocast the call's precision is neither the weight's nor the input's.
        weight = weight.to(gradient.dtype)
        if set(weight.shape[2:]) == set(ctx.stride) == {1} and set(ctx.padding) == {0} and ctx.groups == 1:
            found = (weight.flatten(1).t() @ gradient.flatten(-dimensions)).unflatten(-1, gradient.shape[-dimensions:])
        else:
            found = TRANSPOSED[ctx.func](
                *(gradient, weight, None, ctx.stride, ctx.padding, beyond, ctx.groups, ctx.dilation)
            )
        return None, found.to(blank.dtype), *(None,) * 6


class _Recipe:
    """How an output is computed again: a function and what went into it, itself made again where that is possible.

    Attributes:
        version: of the output, which no longer follows from the input once it has been changed in place.
        waiting: how many tensors are this output or views of it, and have not been made again.
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: torch.Tensor) -> None:
        self.func = func
        self.args = [_kept(value) for value in args]
        self.kwargs = {name: _kept(value) for name, value in kwargs.items()}
        self.version = output._version
        self.precision = precision_now(output.device.type)
        self.waiting = 0
        self.made: torch.Tensor | None = None

    def output(self) -> torch.Tensor:
        """What came out, once more; of a linear layer it stays until all that wait for it have had it."""
        self.waiting -= 1
        found = self._computed() if self.made is None else self.made
        self.made = found if self.func is functional.linear and self.waiting > 0 else None
        return found

    def _computed(self) -> torch.Tensor:
        args = [_again(value) for value in self.args]
        kwargs = {name: _again(value) for name, value in self.kwargs.items()}
        with torch.no_grad(), self.precision():
            output: torch.Tensor = self.func(*args, **kwargs)
        return output


class _Tensor:
    """A tensor that is kept."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor if tensor.is_leaf else tensor.detach()  # it would keep the graph behind it alive
        self.version = tensor._version

    def again(self) -> torch.Tensor:
        """The tensor, unchanged; PyTorch's own check is off where hooks keep its tensors."""
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor that the backward pass needs was changed in place after the forward pass")
        return self.tensor


class _Output:
    """A tensor that is computed again: a recipe's output, or a view of it."""

    def __init__(self, recipe: _Recipe, tensor: torch.Tensor) -> None:
        self.recipe = recipe
        recipe.waiting += 1
        self.layout = tensor.size(), tensor.stride(), tensor.storage_offset()

    def again(self) -> torch.Tensor:
        """The tensor."""
        return self.recipe.output().as_strided(*self.layout)


def _recipe(tensor: torch.Tensor) -> _Recipe | None:
    """How the tensor, or what it is a view of, is computed again; None where that is not known."""
    recipe: _Recipe | None = getattr(tensor if tensor._base is None else tensor._base, RECIPE, None)
    return recipe if recipe is not None and recipe.version == tensor._version else None


def _kept(value: Any) -> Any:
    """What is kept in the place of a tensor; anything else is kept as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    recipe = _recipe(value)
    return _Tensor(value) if recipe is None else _Output(recipe, value)


def _again(kept: Any) -> Any:
    return kept.again() if isinstance(kept, (_Tensor, _Output)) else kept
