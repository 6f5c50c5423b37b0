"""A source of noise as it was: a call that is repeated draws what it drew before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from draft_core.errors import SamplerError

Generator = torch.Generator | list[torch.Generator] | None
State = list[tuple[torch.device, torch.Tensor]]
"""Device and state of every generator, then those of torch's global source: of the CPU and of every GPU in use."""


def checked_source(given: Any, otherwise: Any) -> Generator:
    """The source of noise that is given, or the other one where none is.

    Raises:
        SamplerError: if it is neither a generator nor a list of them: a seed is none, and 0 would pass for no source.
    """
    source = otherwise if given is None else given
    if source is None or isinstance(source, torch.Generator):
        return source
    if isinstance(source, list) and source and all(isinstance(member, torch.Generator) for member in source):
        return source
    raise SamplerError(
        f"it is {source!r}", where="generator", next="give a torch.Generator().manual_seed(SEED), or a list of them"
    )


def state_of(generator: Generator) -> State:
    """What the generators and torch's global source, from which some calls draw beside them, will draw next."""
    return [(source.device, source.get_state()) for source in _listed(generator)] + _global_state()


def _global_state() -> State:
    states = [(torch.device("cuda", card), torch.cuda.get_rng_state(card)) for card in _cards()]
    return [(torch.device("cpu"), torch.get_rng_state()), *states]


def _cards() -> list[int]:
    used = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return list(range(torch.cuda.device_count())) if used else []


def _listed(generator: Generator) -> list[torch.Generator]:
    if generator is None:
        return []
    return generator if isinstance(generator, list) else [generator]


Draw = Callable[..., torch.Tensor]
_guard = threading.Lock()
_installed: dict[tuple[str, str], _DrawnByThread] = {}  # module and name -> what stands there


class _DrawnByThread:
    """A function that draws noise, in the place of the module's own: threads that replace it get their replacement.

    It stands there while any thread replaces the function; all other threads get the module's own.
    """

    def __init__(self, own: Draw) -> None:
        self.own = own
        self.users = 0
        self.local = threading.local()

    def replacements(self) -> list[Draw]:
        """Those of the calling thread, the innermost last."""
        found: list[Draw] = self.local.__dict__.setdefault("replacements", [])
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return [self.own, *self.replacements()][-1](*args, **kwargs)


@contextmanager
def drawn_by(module: Any, name: str, make: Callable[[Draw], Draw]) -> Iterator[None]:
    """`module.name`, which draws noise, is `make(function before)` inside, for the calling thread alone."""
    key = (module.__name__, name)
    with _guard:
        shared = _installed.get(key)
        if shared is None:
            shared = _installed[key] = _DrawnByThread(getattr(module, name))
            setattr(module, name, shared)
        shared.users += 1
    stack = shared.replacements()
    stack.append(make([shared.own, *stack][-1]))
    try:
        yield
    finally:
        stack.pop()
        with _guard:
            shared.users -= 1
            if not shared.users:
                setattr(module, name, _installed.pop(key).own)


@contextmanager
def noted() -> Iterator[list[torch.Size]]:
    """The shapes of the noise that is drawn inside, in order."""
    shapes = list[torch.Size]()

    def noting(draw: Draw) -> Draw:
        def drawn(*sizes: Any, **how: Any) -> torch.Tensor:
            noise = draw(*sizes, **how)
            shapes.append(noise.shape)
            return noise

        return drawn

    with drawn_by(torch, "randn", noting):
        yield shapes


@contextmanager
def from_seed(seed: int) -> Iterator[None]:
    """Torch's global source, from which some schedulers draw, starts at `seed` inside; afterwards it is as before."""
    with torch.random.fork_rng(_cards()):
        torch.manual_seed(seed)
        yield


@contextmanager
def repeated(
    generator: Generator, state: State, batch: int = 1, copies: int = 1, shapes: Sequence[torch.Size] = ()
) -> Iterator[Generator]:
    """What a call takes as its generator to draw the same again; the run's own is left where it is.

    Arguments:
        state: of `generator`, earlier.
        batch: latents of the run.
        copies: of the run's batch in a larger one: each is given the noise that the run was given.
        shapes: of the noise that the run drew before its chain.

    Raises:
        SamplerError: inside, if several copies cannot be given what the run drew.
    """
    draws_once = copies == 1 or isinstance(generator, list)
    with (
        nullcontext() if draws_once else _drawn_for_each(batch, copies, shapes),
        _restored(generator, state, copies) as again,
    ):
        yield again


@contextmanager
def _restored(generator: Generator, state: State, copies: int) -> Iterator[Generator]:
    own = len(_listed(generator))
    again = [_from_state(device, saved) for _ in range(copies) for device, saved in state[:own]]
    with torch.random.fork_rng(_cards()):
        for device, saved in state[own:]:
            if device.type == "cuda":
                torch.cuda.set_rng_state(saved, device)
            else:
                torch.set_rng_state(saved)
        yield again if isinstance(generator, list) else (again[0] if again else None)


@contextmanager
def _drawn_for_each(batch: int, copies: int, shapes: Sequence[torch.Size]) -> Iterator[None]:
    """Noise for the whole batch, before the chain and in it, is drawn for one copy and given to all of them."""
    expected = iter(shapes)

    def drawn(draw: Draw, *sizes: Any, **how: Any) -> torch.Tensor:
        shape = torch.Size(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)
        rest = shape[1:]
        of_run = next(expected, (batch, *rest))
        if shape == of_run:
            return draw(shape, **how)
        if batch % of_run[0] or shape != (copies * of_run[0], *rest):  # the latents may hold frames as items
            raise SamplerError(
                f"several copies cannot be made in one batch: the run drew noise of {tuple(of_run)} "
                f"and its call then asks for {tuple(shape)}",
                where="Renoising.batched",
                next="leave out `batched`, and copies are made one after another",
            )
        return draw(of_run, **how).repeat(copies, *[1] * len(rest))

    with drawn_by(torch, "randn", lambda draw: partial(drawn, draw)):
        yield


def _from_state(device: torch.device, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
