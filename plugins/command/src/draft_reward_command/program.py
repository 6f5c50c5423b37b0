"""A program as a child process: lines in, as many lines out, within a time; each way to fail is one sentence.

The program has a session of its own, on Windows a process group: Ctrl-C reaches the run alone, which finishes its
update, and whatever the program started ends with it. Threads read and write, since Windows can wait for no pipe. What
is for Windows alone was never run.
"""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from draft_core.errors import RewardError
from draft_reward_command.answers import WrongAnswersError, scores_of

CHUNK = 65_536  # bytes of one read or write
LONGEST = 65_536  # bytes of an answer
LAST_LINES, LAST_BYTES = 5, 2_000  # of the standard error that a message repeats
GRACE = 2.0  # seconds in which a program may end by itself once its input has ended
LATE = "raise `timeout`, let it end when its input ends, or, with `start: once`, flush each answer as it is printed"
TIDY = "let it print one line for each image, and all else to the standard error"


class Program:
    """A program that answers lines by lines.

    Arguments:
        command: the program and its arguments. A name without a slash is looked for on PATH, a relative path in the
            folder.
        folder: its working directory.
        stays: whether one process answers all batches; otherwise each batch has its own, whose input ends with it.
        timeout: seconds that it may take for a batch.
        kind: of the reward, for messages.

    Attributes:
        where: begins the sentence of every error.

    Raises:
        RewardError: if there is no such program, or it cannot be executed.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, stays: bool, timeout: float, kind: str) -> None:
        self.where = f"reward {kind!r}: {shlex.join(command)}"
        self.words = [_located(command[0], folder, self.where), *command[1:]]
        self.folder, self.stays, self.timeout = folder, stays, timeout
        self._child: _Child | None = None

    def scores(self, lines: Sequence[bytes], paths: Sequence[str]) -> list[float]:
        """What the program answers to a batch, a score for each image.

        Arguments:
            lines: what it is given, without line ends.
            paths: of the images that they are about, as many.

        Raises:
            RewardError: if it cannot be started, takes too long, ends by an error or too early, or does not answer by
                one finite score for each image. The message repeats the last lines of its standard error. The process
                is gone then, and the next call starts another.
        """
        child = self._child or _Child(self.words, self.folder, self.where)
        self._child = None
        try:
            scores = scores_of(child.exchange(lines, time.monotonic() + self.timeout, ends=not self.stays), paths)
        except TimeoutError:
            raise self._error(child, f"it has not answered within {self.timeout:g} s", LATE) from None
        except WrongAnswersError as error:
            raise self._error(child, error.what, error.next) from None
        except BaseException:
            child.kill()
            raise
        if self.stays:
            self._child = child
        else:
            child.close()
        return scores

    def _error(self, child: _Child, what: str, next: str) -> RewardError:
        said = child.last_words()
        child.kill()
        return RewardError(f"{what}; its last words: {said}" if said else what, where=self.where, next=next)


@dataclass
class _Pipes:
    """A process, what is open for it, and the threads that alone use its pipes while they live."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    reader: threading.Thread
    writer: threading.Thread | None = None


class _Child:
    """One process of the program."""

    def __init__(self, words: Sequence[str], folder: Path, where: str) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 a file never fills up, as a pipe that nobody reads would
        try:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                bufsize=0,
                **_apart(),
            )
        except (OSError, ValueError) as error:
            self.errors.close()
            raise RewardError(
                f"it cannot be started ({getattr(error, 'strerror', None) or error})",
                where=where,
                next="begin a script by a line such as #!/usr/bin/env python3, or name its interpreter as first word",
            ) from error
        self.answered: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # parts of its output; an empty one is its end
        self.pipes = _Pipes(self.process, self.errors, _started(_read, self.process.stdout, self.answered))
        self.close = weakref.finalize(self, _end, self.pipes)  # at the latest when this interpreter ends

    def kill(self) -> None:
        """Ends it at once, and all that it started."""
        _kill(self.process)
        self.close()

    def exchange(self, lines: Sequence[bytes], deadline: float, *, ends: bool) -> list[bytes]:
        """The answers to some lines.

        Arguments:
            deadline: by the monotonic clock.
            ends: whether the input ends with these lines, and the process with it.

        Raises:
            TimeoutError: at the deadline.
            WrongAnswersError: if the answers are not as many, or the process ends otherwise.
        """
        answered = self._talk(b"".join(line + b"\n" for line in lines), len(lines), deadline, ends)
        *answers, rest = answered.split(b"\n")
        if rest:  # the last line of a process that has ended
            answers.append(rest)
        if ends or len(answers) < len(lines):
            self._require_good_end(deadline, len(answers), len(lines))
        if len(answers) != len(lines):
            stay = "" if ends else "; with `start: once` it goes on until its input ends"
            raise WrongAnswersError(f"it answered {len(lines)} images by {len(answers)} lines", TIDY + stay)
        return answers

    def _talk(self, text: bytes, count: int, deadline: float, ends: bool) -> bytes:
        """Writes the text and reads what is answered meanwhile: so neither side waits for the other for ever."""
        answered, part = bytearray(), self._part(0.0) if not ends else None
        if part:  # what came after the last answer that was asked for
            raise WrongAnswersError(f"it printed {part[:80].decode(errors='replace')!r} without being asked", TIDY)
        self.pipes.writer = _started(_write, self.process.stdin, text, ends)
        while part != b"" and (ends or answered.count(b"\n") < count):
            part = self._part(max(deadline - time.monotonic(), 0.0))
            if part is None:
                raise TimeoutError
            answered += part
            self._require_short(answered, count)
        self.pipes.writer.join(max(deadline - time.monotonic(), 0.0))
        if self.pipes.writer.is_alive():  # it does not read all that it is asked
            raise TimeoutError
        while extra := self._part(0.0):
            answered += extra
        return bytes(answered)

    def _part(self, seconds: float) -> bytes | None:
        """What it printed next; empty at its end, None if nothing comes within these seconds."""
        try:
            part = self.answered.get(timeout=seconds) if seconds else self.answered.get_nowait()
        except queue.Empty:
            return None
        if not part:
            self.answered.put(part)  # the end stays, for who asks again
        return part

    def _require_short(self, answered: bytearray, count: int) -> None:
        if len(answered) > LONGEST * count:
            raise WrongAnswersError(f"it printed {len(answered)} bytes and more for {count} images", TIDY)

    def _require_good_end(self, deadline: float, answered: int, count: int) -> None:
        """That the process ends by itself and without an error."""
        try:
            code = self.process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if code:
            how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
            raise WrongAnswersError(
                f"it {how} after {answered} of {count} answers", "try it by hand with a path on its standard input"
            )

    def last_words(self) -> str:
        """The last lines of its standard error, joined by bars."""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = self.errors.read().decode("utf-8", errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:])


def _located(word: str, folder: Path, where: str) -> str:
    """The absolute path of the program that a word names.

    Raises:
        RewardError: if there is none, or it cannot be executed.
    """
    is_path = os.sep in word or (os.altsep or os.sep) in word
    path = folder / word
    if found := shutil.which(path if is_path else word):
        return str(Path(found).absolute())
    if path.is_file() and is_path:
        raise RewardError(
            "the program is not executable",
            where=where,
            next=f"make it so with chmod +x {word}, or name its interpreter as first word",
        )
    beside = f"write ./{word} for the file in {folder}" if path.is_file() else "check the word, or install it"
    place = str(path) if is_path else f"{word} on PATH"
    raise RewardError(f"there is no program {place}", where=where, next="check the path" if is_path else beside)


def _started(work: Any, *words: Any) -> threading.Thread:
    """A thread that does this, and keeps no interpreter from ending."""
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    return thread


def _read(of: IO[bytes], answered: queue.SimpleQueue[bytes]) -> None:
    """Takes all that a pipe gives, and closes it at its end."""
    with of, suppress(OSError):
        while part := of.read(CHUNK):
            answered.put(part)
    answered.put(b"")


def _write(to: IO[bytes], text: bytes, ends: bool) -> None:
    """Writes a text; less of it to a program that reads no more, and may have answered nevertheless."""
    rest = memoryview(text)
    with suppress(OSError):
        while rest:
            rest = rest[to.write(rest[:CHUNK]) :]
    if ends:
        with suppress(OSError):
            to.close()


def _end(pipes: _Pipes) -> None:
    """Ends the input of a process, and the process if it does not end by itself; closes what was open for it."""
    process = pipes.process
    assert process.stdin is not None
    if pipes.writer is not None and pipes.writer.is_alive():
        _kill(process)
        pipes.writer.join(GRACE)
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    pipes.reader.join(GRACE)  # it lives on where something that left the session holds the pipe
    pipes.errors.close()


def _apart() -> dict[str, Any]:
    """How a process is started so that it can be ended with all that it starts, and gets no Ctrl-C."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    if sys.platform == "win32":  # never run
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
