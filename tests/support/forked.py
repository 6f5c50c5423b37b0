"""A process that is a copy of this one, with all that is imported: it is there at once, and can be killed."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def forked(entered: Callable[[], AbstractContextManager[object]]) -> Iterator[int]:
    """Enters what `entered` gives in another process, and kills that process by SIGKILL at the end.

    Yields:
        its id, once it is within.
    """
    listening, telling = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the copy needs
        pid = os.fork()
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
