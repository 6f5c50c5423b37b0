"""Memory that two processes share: a file mapped into both, in memory where the system has a folder for that."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

from draft_core.errors import RewardError

IN_MEMORY = Path("/dev/shm")  # Linux; elsewhere the folder of temporary files, whose pages are kept in memory too
BLOCK = 1 << 20  # bytes by which it grows
ZEROS = bytes(BLOCK)
# What helps where a reward's process runs out of memory.
LESS_MEMORY = "lower train.batch_size, raise train.gradient_accumulation_steps, or give the reward a device of its own"


class SharedMemory:
    """Bytes that both processes see; each can make them more.

    Arguments:
        path: of the file that the other process made; None makes one.

    Attributes:
        path: of the file.
        close: lets go of the file, at the latest when nothing holds the memory.

    Raises:
        RewardError: if no file can be made.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            descriptor, path = _made()
        else:
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        self.path = path
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._map: mmap.mmap | None = None
        self.close = weakref.finalize(self, _let_go, self._file, path)

    def bytes(self, size: int) -> mmap.mmap:
        """The bytes themselves, `size` at least.

        The file grows by being written to: a full disk is then an error, where a hole in a file would end the process.

        Raises:
            RewardError: if there is no room for so many.
        """
        length = self._file.seek(0, os.SEEK_END)
        try:
            while length < max(size, 1):
                length += self._file.write(ZEROS)
        except OSError as error:
            raise RewardError(
                f"there is no room for {size / 1e6:.0f} MB ({error.strerror})",
                where=str(Path(self.path).parent),
                next="make room there, or lower train.batch_size",
            ) from error
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self._file.fileno(), length)  # tensors may still look at the old one
        return self._map

    def forget_name(self) -> None:
        """Removes the file's name, when both have it open: nothing is left behind then, whoever is killed.

        Windows keeps the name until `close`.
        """
        with suppress(OSError):
            os.unlink(self.path)


def _let_go(file: IO[bytes], path: str) -> None:
    file.close()
    with suppress(OSError):
        os.unlink(path)


def _made() -> tuple[int, str]:
    """A new file, open, and its path."""
    folders = [IN_MEMORY] if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) else []
    for folder in [*map(str, folders), tempfile.gettempdir()]:
        with suppress(OSError):
            return tempfile.mkstemp(prefix="draft-worker-", dir=folder)
    raise RewardError(
        "no file can be made there", where=tempfile.gettempdir(), next="make room, or name another folder in TMPDIR"
    )
