"""How many threads torch computes with on the CPU: beside other programs, as many as there are idle cores.

Small tensors wait for the slowest thread: two threads on two cores that others use take several times as long as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def chosen_threads(said: int | None = None, before: int | None = None) -> tuple[int | None, str | None]:
    """How many threads to compute with, and a sentence where the load of the machine decides.

    Arguments:
        said: by a person; that counts.
        before: what an earlier part of the run computed with: its bits depend on it.

    Returns:
        The number, or None to leave it as it is: where OMP_NUM_THREADS says it, the load is not known or the machine
        is idle.
    """
    if said is not None:
        return said, None
    if os.environ.get("OMP_NUM_THREADS"):
        return None, None
    if before is not None:
        return before, None
    idle, usual = idle_cores(), torch.get_num_threads()
    if idle is None or idle >= usual:
        return None, None
    return idle, (
        f"{usual - idle} of {usual} cores are busy: {idle} {'thread computes' if idle == 1 else 'threads compute'}; "
        "`threads` of the recipe says another number"
    )


def idle_cores() -> int | None:
    """Cores of this process less the load of the last minute, one at least; None where the system tells no load."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(load))


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """So many threads inside, and afterwards as many as before; None leaves them."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)
