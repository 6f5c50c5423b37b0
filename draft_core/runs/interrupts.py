"""Ctrl-C and SIGTERM end a run after the update under way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from draft_core.errors import Interrupted


@dataclass
class Stop:
    """Which signal asked for an end, if one did."""

    signal: int = 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM are noted inside, so that the update under way is finished; a second one ends at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            raise Interrupted(
                "ended at once, in the midst of an update",
                next="continue with the same command from the last checkpoint",
                exit_code=128 + number,
            )
        stop.signal = number

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: whoever runs us there handles signals
            break
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
