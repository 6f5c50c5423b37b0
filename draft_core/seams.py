"""The places where a pipeline's own call can be steered: its scheduler's step, its denoiser, its prompts.

Each seam is a context manager that replaces one bound method on one object, keeps its signature
(pipelines inspect them), and puts back exactly what was there. Tensors wing. May import: errors.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from draft_core.errors import SamplerError

# Attribute names under which diffusers pipelines keep the model that predicts noise or velocity.
DENOISERS = ("unet", "transformer")

Wrapper = Callable[..., Any]


def find_denoiser(pipe: Any) -> tuple[str, Any]:
    """The pipeline's denoiser and the attribute it sits under.

    Raises:
        SamplerError: if the pipeline has none under a name we know.
    """
    for name in DENOISERS:
        if isinstance(module := getattr(pipe, name, None), torch.nn.Module):
            return name, module
    raise SamplerError(
        f"{type(pipe).__name__} has no denoiser under {' or '.join(DENOISERS)}",
        where="pipeline",
        next="use a text-to-image or text-to-video diffusers pipeline",
    )


def differentiable_call(pipe: Any) -> Callable[..., Any]:
    """The pipeline class's `__call__` without the `torch.no_grad` around it, as an unbound function."""
    call: Callable[..., Any] = inspect.unwrap(type(pipe).__call__)
    return call


@contextmanager
def replaced(owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
    """Calls of `owner.name(*args)` become `wrapper(original, *args)` inside the context.

    The replacement keeps the original's signature. Afterwards the instance attribute is as before, also
    where another library (accelerate's hooks, say) had put one there.
    """
    original = getattr(owner, name)
    had_own = name in vars(owner)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(owner, name, call)
    try:
        yield
    finally:
        if had_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextmanager
def grad_mode_restored() -> Iterator[None]:
    """Whatever happens inside, autograd's global recording mode is the same afterwards."""
    before = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


@contextmanager
def graph_released(scheduler: Any) -> Iterator[None]:
    """Afterwards the scheduler, which may remember earlier outputs, keeps no autograd graph alive."""
    try:
        yield
    finally:
        restore_scheduler(scheduler, scheduler_state(scheduler))


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """The pipeline's own per-step progress bar is off inside."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


def first_of(output: Any, field: str) -> torch.Tensor:
    """The tensor that a step or a denoiser returned, first of a tuple or `field` of an output object."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else getattr(output, field)
    return tensor


def with_first(output: Any, field: str, tensor: torch.Tensor) -> Any:
    """`output` of a step or a denoiser with the tensor that `first_of` gives replaced."""
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    replacement = copy.copy(output)
    setattr(replacement, field, tensor)
    return replacement


def denoiser_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The latents among the arguments of a denoiser call."""
    tensors = [*args, kwargs.get("sample"), kwargs.get("hidden_states")]
    return next(value for value in tensors if isinstance(value, torch.Tensor))


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """What the scheduler remembers between steps (indices, earlier outputs), free of graphs."""
    return {name: _snapshot(value) for name, value in vars(scheduler).items() if name != "step"}


def restore_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """Puts a `scheduler_state` back; it can be put back again later."""
    vars(scheduler).update({name: _snapshot(value) for name, value in state.items()})


def _snapshot(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, list):  # multi-step solvers shift their lists of earlier outputs in place
        return [_snapshot(item) for item in value]
    return value
