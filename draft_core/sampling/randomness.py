"""A source of noise as it was: a call that is repeated draws what it drew before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

Generator = torch.Generator | list[torch.Generator] | None
State = list[tuple[torch.device, torch.Tensor]]
"""Device and state of every generator, then those of torch's global source: of the CPU and of every GPU in use."""


def state_of(generator: Generator) -> State:
    """What the generators and torch's global source, from which some calls draw beside them, will draw next."""
    return [(one.device, one.get_state()) for one in _listed(generator)] + _global_state()


def _global_state() -> State:
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = [(torch.device("cuda", card), torch.cuda.get_rng_state(card)) for card in cards]
    return [(torch.device("cpu"), torch.get_rng_state()), *states]


def _listed(generator: Generator) -> list[torch.Generator]:
    if generator is None:
        return []
    return generator if isinstance(generator, list) else [generator]


@contextmanager
def repeated(generator: Generator, state: State, copies: int = 1) -> Iterator[Generator]:
    """What a call takes as its generator to draw the same again; the run's own is left where it is.

    Arguments:
        state: of `generator`, earlier.
        copies: of the run's batch in a larger one: each is given the noise that the run was given.
    """
    with _drawn_for_each(1 if isinstance(generator, list) else copies), _restored(generator, state, copies) as again:
        yield again


@contextmanager
def _restored(generator: Generator, state: State, copies: int) -> Iterator[Generator]:
    own = len(_listed(generator))
    again = [_from_state(device, one) for _ in range(copies) for device, one in state[:own]]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
        for device, one in state[own:]:
            if device.type == "cuda":
                torch.cuda.set_rng_state(one, device)
            else:
                torch.set_rng_state(one)
        yield again if isinstance(generator, list) else (again[0] if again else None)


@contextmanager
def _drawn_for_each(copies: int) -> Iterator[None]:
    """A batch of noise that one generator is asked for is drawn for one copy, and given to all of them."""
    if copies == 1:
        yield
        return
    draw = torch.randn

    def drawn(*sizes: Any, **how: Any) -> torch.Tensor:
        shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        if not shape or shape[0] % copies:
            return draw(shape, **how)
        return draw((shape[0] // copies, *shape[1:]), **how).repeat(copies, *[1] * (len(shape) - 1))

    with mock.patch.object(torch, "randn", drawn):
        yield


def _from_state(device: torch.device, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
