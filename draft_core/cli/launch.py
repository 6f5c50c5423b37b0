"""One command in several processes of this machine: it starts them, stops them, and says why they ended.

The processes are torch's (`torch.distributed.elastic.multiprocessing`), and find each other as under `torchrun` or
`accelerate launch`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

from draft_core.errors import DraftError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
HOUR = 3600  # seconds that an update under way may take after the first Ctrl-C
MOMENT = 5  # and after the second
KILLED = int(getattr(signal, "SIGKILL", 9))  # Windows has no name for it


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `python ARGUMENTS` in `processes` processes, and gives the exit code they ended with.

    Ctrl-C and SIGTERM are passed on, and waited for; a second one ends all. When one process dies the others are ended.

    Raises:
        DraftError: if one was killed, or ended for a reason that is no sentence of its own.
    """
    port = _free_port()
    ranks = range(processes)
    with _handlers_restored(), _hushed():
        context = start_processes(
            name="draft",
            entrypoint=sys.executable,
            args={rank: tuple(arguments) for rank in ranks},
            envs={rank: _environment(rank, processes, port) for rank in ranks},
            logs_specs=DefaultLogsSpecs(),
        )
        try:
            result = context.wait(period=0.1)
        except SignalException as stop:
            try:
                context.close(death_sig=stop.sigval, timeout=HOUR)
            except SignalException as again:
                context.close(death_sig=again.sigval, timeout=MOMENT)
            result = context.wait(period=0.1)
            if result is None or not result.failures:
                return 128 + int(stop.sigval)
    return _exit_code(result.failures) if result is not None else 0


def _exit_code(failures: Mapping[int, Any]) -> int:
    """Of the first that failed; those after it were ended because of it."""
    if not failures:
        return 0
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    killed = [(rank, failure) for rank, failure in failures.items() if failure.exitcode == -KILLED]
    if killed:  # nobody but the system or a person sends it; others may fail in the same instant for want of this one
        rank, first = killed[0]
    if first.exitcode < 0:
        memory = ", by the system for want of memory perhaps" if first.exitcode == -KILLED else ""
        raise DraftError(
            f"it was killed ({signal.Signals(-first.exitcode).name}{memory}), and the others were ended",
            where=f"process {rank}",
            next="what was saved is whole; continue with the same command",
        )
    if first.exitcode == 1:
        raise DraftError(
            "it failed, and the others were ended",
            where=f"process {rank}",
            next="see its traceback above; what was saved is whole",
        )
    return int(first.exitcode)  # it has said why


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torch and accelerate read to know their rank."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _hushed() -> Iterator[None]:
    """Torch's own lines on what it does to processes would bury our sentence."""
    logger = logging.getLogger("torch.distributed.elastic.multiprocessing")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
