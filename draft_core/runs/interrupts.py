"""What ends a run before its time: signals, after the update under way, and what can go wrong with any computation."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from safetensors import SafetensorError

from draft_core.errors import CheckpointError, DraftError, Interrupted, first_line, raised
from draft_core.recipe.yaml_text import exists
from draft_core.runs.folder import CHECKPOINTS
from draft_core.training.checkpoints import checkpoints
from draft_core.training.distributed import another_is_gone, is_loss_of_another
from draft_core.training.learner_contract import is_want_of_memory

Told = TypeVar("Told")


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


# What can go wrong with any computation


@contextmanager
def in_sentences(output: Path) -> Iterator[None]:
    """A full disk, a want of memory and a lost process end as a `DraftError` that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"it cannot be written ({getattr(error, 'strerror', None) or error})",
            where=str(getattr(error, "filename", None) or output),
            next=f"make room or mend the folder, then give the same command again{_kept(output)}",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if is_loss_of_another(error):
            raise another_is_gone(int(os.environ.get("RANK", "0"))) from error
        if not is_want_of_memory(error):
            raise
        raise DraftError(
            f"it does not fit into memory ({first_line(error)})",
            where=f"output {output}",
            next="halve train.batch_size and double train.gradient_accumulation_steps, or see what `draft cost` says"
            f"{_kept(output)}",
        ) from error


def _kept(output: Path) -> str:
    """That there is something to go on from, where there is."""
    folder = output / CHECKPOINTS
    is_kept = exists(Path.is_dir, folder) and bool(checkpoints(folder))
    return "; what was saved is whole, and the run goes on from it" if is_kept else ""


def telling(function: Callable[[Told], object] | None, name: str) -> Callable[[Told], None]:
    """Tells a caller's function, if there is one, and makes one sentence of what it raises.

    Arguments:
        name: what an error calls it.
    """

    def tell(told: Told) -> None:
        try:
            if function is not None:
                function(told)
        except DraftError:
            raise
        except Exception as error:
            raise DraftError(
                f"it raised {raised(error)}", where=name, next="mend the function; the run goes on where it was saved"
            ) from error

    return tell


def require_callable(**functions: Callable[[Any], object] | None) -> None:
    """That what is to be told of a run can be called, before anything loads.

    Raises:
        DraftError: naming the first that cannot.
    """
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise DraftError(f"it is {function!r}", where=name, next="give a function, or leave it out")
