"""A source of noise as it was: a call that is repeated draws what it drew before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

Generator = torch.Generator | list[torch.Generator] | None
State = list[tuple[torch.device, torch.Tensor]] | None
"""Device and state of every generator; for torch's global source those of the CPU and of every GPU."""


def state_of(generator: Generator) -> State:
    """What the generators, or torch's global source where there is none, will draw next."""
    if generator is None:
        cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        states = [(torch.device("cuda", card), torch.cuda.get_rng_state(card)) for card in cards]
        return [(torch.device("cpu"), torch.get_rng_state()), *states]
    generators = generator if isinstance(generator, list) else [generator]
    return [(one.device, one.get_state()) for one in generators]


@contextmanager
def repeated(generator: Generator, state: State, copies: int = 1) -> Iterator[Generator]:
    """What a call takes as its generator to draw the same again; the run's own is left where it is.

    Arguments:
        state: of `generator`, earlier.
        copies: how often a list of generators is repeated, for a batch `copies` times as large.
    """
    assert state is not None
    if generator is None:
        with torch.random.fork_rng():
            for device, one in state:
                if device.type == "cuda":
                    torch.cuda.set_rng_state(one, device)
                else:
                    torch.set_rng_state(one)
            yield None
        return
    again = [_from_state(device, one) for _ in range(copies) for device, one in state]
    yield again if isinstance(generator, list) else again[0]


def _from_state(device: torch.device, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
