"""A process that is a copy of this one, with all that is imported: it is there at once, and can be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO


@contextmanager
def forked(entered: Callable[[], AbstractContextManager[object]]) -> Iterator[int]:
    """Enters what `entered` gives in another process, and kills that process by SIGKILL at the end.

    Yields:
        its id, once it is within.
    """
    listening, telling = os.pipe()
    pid = _copy()
    if pid == 0:
        try:
            with entered():
                os.write(telling, b"within")
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(telling)
    try:
        with os.fdopen(listening, "rb") as told:
            assert told.read(6) == b"within", "the other process has failed"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def forked_command(words: list[str]) -> Iterator[tuple[int, TextIO]]:
    """Runs `draft WORDS` in another process, which is killed at the end if it has not been waited for.

    Yields:
        its id and what it prints.
    """
    from draft_core.cli.app import app

    reading, writing = os.pipe()
    pid = _copy()
    if pid == 0:
        code = 1
        try:
            os.dup2(writing, 1)
            sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
            app(words, prog_name="draft")
        except SystemExit as done:
            code = int(done.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    try:
        with os.fdopen(reading, encoding="utf-8") as printed:
            yield pid, printed
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # the test has waited for it


def _copy() -> int:
    """The id of a copy of this process, and 0 in the copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the copy needs
        return os.fork()
