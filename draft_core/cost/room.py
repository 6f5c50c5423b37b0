"""How much memory is free for an update, and whether one fits: asked before a run draws or deletes anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from draft_core.cost.forecast import further_bytes, is_known, most_bytes
from draft_core.errors import DraftError
from draft_core.training.trainer import Trainer

MARGIN = 1.3  # a prediction lies within a third of what an update takes (tests/cost/test_forecast.py)
DOUBT = 4  # times the sampler's memory must be free, or the rewards are asked too
GIGABYTE = 1e9


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still allocate on a device; None where that cannot be known.

    On the CPU it is what the system has available and a limit of its control group leaves, shared by the processes of
    this machine.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type != "cpu":
        return None
    found = [*_available(), *_left_by_control_group()]
    return min(found) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if found else None


def require_room(trainer: Trainer) -> str | None:
    """What a person should know of an update that hardly fits into the memory that is free; None where it fits.

    It backpropagates through the sampling of one image, and where that leaves a doubt makes a few small updates; no
    weight is changed. Nothing is said of a method whose calls are not known before it runs, nor of a denoiser that is
    spread over processes.

    Raises:
        DraftError: if the update does not fit.
    """
    room = free_memory(trainer.device)
    known = is_known(trainer) and trainer.settings.sharding == "none"
    if room is None or not known:
        return None
    with torch.random.fork_rng(devices=[]):
        if DOUBT * most_bytes(trainer) <= room:
            return None
        needed = further_bytes(trainer)
    if needed <= room:
        return None
    sentence = (
        f"an update takes about {needed / GIGABYTE:.1f} GB beside what is loaded, and "
        f"{room / GIGABYTE:.1f} GB are free on {trainer.device}"
    )
    if needed <= MARGIN * room:
        return f"{sentence}: it may not fit, `draft cost` says what lowers it"
    raise DraftError(
        sentence,
        where=f"train.batch_size {trainer.batch_size}",
        next="halve it and double train.gradient_accumulation_steps, or see what `draft cost` says",
    )


def _available() -> Iterator[int]:
    """What Linux says that new work can have; elsewhere all there is."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        yield 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        return
    with suppress(AttributeError, OSError, ValueError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left_by_control_group(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What a container's limit leaves, in either version of control groups."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            yield max(
                0, int((root / limit).read_text(encoding="ascii")) - int((root / used).read_text(encoding="ascii"))
            )
