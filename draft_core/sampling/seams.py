"""The places where a pipeline's own call can be steered: its scheduler's step, its denoiser, its prompts.

Each seam is a context manager that replaces one bound method on one object, keeps its signature
(pipelines inspect them), and puts back exactly what was there.
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from draft_core.errors import SamplerError

Wrapper = Callable[..., Any]


class Replacement:
    """`owner.name` as a wrapper around the original, with the original's signature.

    A deep copy of the owner, which pipelines with two streams make of their scheduler, has its own method
    instead: one that stood in for the owner's would step the wrong one.
    """

    def __init__(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        original = getattr(owner, name)
        functools.update_wrapper(self, original)
        self.owner, self.name, self.wrapper, self.original = owner, name, wrapper, original
        self.copied = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapper makes of the call."""
        return self.wrapper(self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self.owner) not in memo:
            raise SamplerError(
                f"it copies what its {type(self.owner).__name__} remembers, for several views of one image",
                where="pipeline",
                next="use a pipeline with one chain",
            )
        self.copied = True
        return getattr(type(self.owner), self.name).__get__(memo[id(self.owner)])


@contextmanager
def replaced(owner: Any, name: str, wrapper: Wrapper) -> Iterator[Replacement]:
    """Calls of `owner.name(*args)` become `wrapper(original, *args)` inside the context.

    The replacement keeps the original's signature. Afterwards the instance attribute is as before, also
    where another library (accelerate's hooks, say) had put one there.
    """
    replacement = Replacement(owner, name, wrapper)
    had_own = name in vars(owner)
    setattr(owner, name, replacement)
    try:
        yield replacement
    finally:
        if had_own:
            setattr(owner, name, replacement.original)
        else:
            delattr(owner, name)


_guard = threading.Lock()
_in_use: dict[int, tuple[int, bool]] = {}  # id of an object -> the thread that uses it, and whether a call may follow


@contextmanager
def in_use(pipe: Any, parts: Sequence[Any], *, before_call: bool = False) -> Iterator[None]:
    """This thread alone uses the parts of a pipeline inside the context.

    Arguments:
        before_call: it only looks at the parts, or prepares them, so that a call of the pipeline may follow inside.

    Raises:
        SamplerError: if another thread uses one of them, or this one is in the midst of a call.
    """
    thread = threading.get_ident()
    with _guard:
        before = {id(part): _in_use.get(id(part)) for part in parts}
        for holder, may_call in [held for held in before.values() if held is not None]:
            if holder != thread:
                problem = "another thread samples with it, or with a part of it, at this moment"
                advice = "give each thread a pipeline of its own, or sample in turn"
            elif not may_call:
                problem = "it is in the midst of a call, and cannot be called inside that (in a visit, say)"
                advice = "keep what the visit needs, and sample after the replay"
            else:
                continue
            raise SamplerError(problem, where=type(pipe).__name__, next=advice)
        _in_use.update(dict.fromkeys(before, (thread, before_call)))
    try:
        yield
    finally:
        with _guard:
            for key, held in before.items():
                if held is None:
                    del _in_use[key]
                else:
                    _in_use[key] = held


@contextmanager
def grad_mode_restored() -> Iterator[None]:
    """Whatever happens inside, autograd's global recording mode is the same afterwards."""
    before = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


@contextmanager
def state_restored(*owners: Any) -> Iterator[None]:
    """What these objects (a pipeline, a scheduler, a guider) remember is the same afterwards."""
    before = [{name: _snapshot(value) for name, value in vars(owner).items()} for owner in owners]
    try:
        yield
    finally:
        for owner, state in zip(owners, before, strict=True):
            vars(owner).clear()
            vars(owner).update(state)


@contextmanager
def graph_released(*owners: Any) -> Iterator[None]:
    """Afterwards a scheduler or guider, which may remember earlier outputs, keeps no autograd graph alive."""
    try:
        yield
    finally:
        restore_memory(owners, memory_of(owners))


# What goes into and comes out of steps and denoisers


@dataclass(frozen=True)
class StepCall:
    """One call of `scheduler.step`: what went in, and `run`, which makes it.

    Arguments:
        model_output: the denoiser's prediction, after guidance.
        timestep: as the pipeline gave it.
        sample: the latents before the step.
        run: the scheduler's own step with the same arguments, or with those that are given by name.
        told: what else the step is told that may change what prediction and latents mean, by name.
    """

    model_output: torch.Tensor
    timestep: Any
    sample: torch.Tensor
    run: Callable[..., Any]
    told: tuple[str, ...] = ()


STEP_ARGUMENTS = ("model_output", "timestep", "sample")

# Arguments of steps that change neither the noise level of the latents nor what is predicted.
PLAIN_ARGUMENTS = (
    *("generator", "return_dict", "eta", "use_clipped_model_output", "variance_noise", "order"),
    *("s_churn", "s_tmin", "s_tmax", "s_noise", "prev_timestep", "timestep_back", "old_pred_original_sample"),
)


def step_call(step: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
    """The call `step(*args, **kwargs)`, its arguments found by name: schedulers differ in their order."""
    bound = inspect.signature(step).bind(*args, **kwargs)
    given = bound.arguments
    plain = (*STEP_ARGUMENTS, *PLAIN_ARGUMENTS)
    told = tuple(
        name for name, value in given.items() if name not in plain and value is not None and value is not False
    )

    def run(**other: Any) -> Any:
        changed = inspect.BoundArguments(bound.signature, {**given, **other})
        return step(*changed.args, **changed.kwargs)

    return StepCall(**{name: given[name] for name in STEP_ARGUMENTS}, run=run, told=told)


def first_of(output: Any, field: str) -> Any:
    """What a step or a denoiser returned: a tensor alone, first of a tuple or `field` of an output object."""
    alone = isinstance(output, torch.Tensor)
    return output if alone else output[0] if isinstance(output, tuple) else getattr(output, field)


def with_first(output: Any, field: str, value: Any) -> Any:
    """`output` of a step or a denoiser with what `first_of` gives replaced."""
    if isinstance(output, (tuple, torch.Tensor)):
        return (value, *output[1:]) if isinstance(output, tuple) else value
    replacement = copy.copy(output)
    setattr(replacement, field, value)
    return replacement


def mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with each tensor inside its tuples, lists and dictionaries replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):  # output objects of diffusers and transformers are ordered dictionaries
        replacement = copy.copy(value)
        for key, item in value.items():
            replacement[key] = mapped(function, item)
        return replacement
    if isinstance(value, (list, tuple)):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors inside nested tuples, lists and dictionaries, in order."""
    found: list[torch.Tensor] = []
    mapped(lambda tensor: found.append(tensor) or tensor, value)  # type: ignore[func-returns-value]
    return found


def denoiser_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The latents among the arguments of a denoiser call: a tensor, or a list of one for each image.

    They come first, or under a name of the field's; of a denoiser with names of its own, all that is given.
    """
    named = [kwargs[name] for name in ("sample", "hidden_states", "x") if name in kwargs]
    candidates = [*args[:1], *named, *args[1:], list(kwargs.values())]
    return next(value for value in candidates if tensors_in(value))


def with_input_gradient(args: tuple[Any, ...], kwargs: dict[str, Any], factor: float) -> tuple[Any, dict[str, Any]]:
    """The arguments of a denoiser call, `factor` times the gradient of its latents flowing back through them."""
    latents = {id(tensor) for tensor in tensors_in(denoiser_input(args, kwargs))}
    scaled = mapped(lambda tensor: with_gradient(tensor, factor) if id(tensor) in latents else tensor, (args, kwargs))
    return scaled[0], scaled[1]


def with_gradient(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """The same values, bit for bit, with `factor` times the gradient."""
    return tensor.detach() + factor * (tensor - tensor.detach()) if factor else tensor.detach()


def with_prediction(call: StepCall, prediction: torch.Tensor) -> StepCall:
    """A step that is given another prediction."""
    return replace(call, model_output=prediction, run=functools.partial(call.run, model_output=prediction))


def shapes_of(value: Any) -> tuple[torch.Size, ...]:
    """The shapes of the tensors inside."""
    return tuple(tensor.shape for tensor in tensors_in(value))


def blank(output: Any) -> Any:
    """`output` with zeros for its tensors, which take no memory."""
    return mapped(lambda tensor: tensor.detach().new_zeros(()).expand(tensor.shape), output)


def listed(value: Any, copies: int) -> Any:
    """`value` with every list in it repeated `copies` times."""
    if isinstance(value, list):
        return value * copies
    if isinstance(value, tuple):
        return tuple(listed(item, copies) for item in value)
    if isinstance(value, dict):
        replacement = copy.copy(value)
        for key, item in value.items():
            replacement[key] = listed(item, copies)
        return replacement
    return value


# What a scheduler or a guider remembers between steps

State = dict[str, Any]


def memory_of(owners: Sequence[Any]) -> list[State]:
    """The `scheduler_state` of each."""
    return [scheduler_state(owner) for owner in owners]


def restore_memory(owners: Sequence[Any], memory: Sequence[State]) -> None:
    """Puts a `memory_of` back; it can be put back again later."""
    for owner, state in zip(owners, memory, strict=True):
        restore_scheduler(owner, state)


def scheduler_state(scheduler: Any) -> State:
    """What the scheduler remembers between steps (indices, earlier outputs), free of graphs."""
    own = {name: value for name, value in vars(scheduler).items() if not isinstance(value, Replacement)}
    return {name: _snapshot(value) for name, value in own.items()}


def restore_scheduler(scheduler: Any, state: State) -> None:
    """Puts a `scheduler_state` back; it can be put back again later."""
    vars(scheduler).update({name: _snapshot(value) for name, value in state.items()})


def remembered(memory: Any) -> list[torch.Tensor]:
    """The tensors inside what `memory_of` gave."""
    found: list[torch.Tensor] = []
    _snapshot(memory, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def repeated(memory: Any, shape: torch.Size, copies: int) -> Any:
    """What `memory_of` or a step gave, its earlier outputs, tensors of the latents' `shape`, `copies` times."""

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor] * copies) if tensor.shape == shape else tensor

    return memory if copies == 1 else _snapshot(memory, repeat)


def altered(state: State, shape: torch.Size) -> State:
    """A `scheduler_state` with other numbers in its earlier outputs, tensors of the latents' `shape`."""

    def alter(tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor + 1 if tensor.shape == shape and tensor.is_floating_point() else tensor

    return {name: _snapshot(value, alter) for name, value in state.items()}


def _snapshot(value: Any, change: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) is dict:
        return {name: _snapshot(item, change) for name, item in value.items()}
    if isinstance(value, dict):  # an output object, or a config
        return mapped(change, value) if tensors_in(value) else value
    if _is_memory(value):
        replacement = copy.copy(value)
        vars(replacement).update({name: _snapshot(item, change) for name, item in vars(value).items()})
        return replacement
    if isinstance(value, (list, tuple)):  # multi-step solvers shift their lists of earlier outputs in place
        items = [_snapshot(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _is_memory(value: Any) -> bool:
    """An object of diffusers that only holds values, such as a guider's momentum; components have a config."""
    holds = hasattr(value, "__dict__") and not callable(value) and not hasattr(value, "config")
    return holds and type(value).__module__.startswith("diffusers.") and not isinstance(value, enum.Enum)
