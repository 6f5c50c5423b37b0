"""A program as a child process: lines in, as many lines out, within a time; each way to fail is one sentence.

For Linux and macOS. The program has a session of its own: Ctrl-C reaches the run alone, which finishes its update, and
whatever the program started ends with it.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

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
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self.errors.close()
            raise RewardError(
                f"it cannot be started ({getattr(error, 'strerror', None) or error})",
                where=where,
                next="begin a script by a line such as #!/usr/bin/env python3, or name its interpreter as first word",
            ) from error
        self.close = weakref.finalize(self, _end, self.process, self.errors)  # at the latest when this interpreter ends

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
        to, of = self._pipes()
        rest, answered = memoryview(text), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(of, selectors.EVENT_READ)
            if not ends and selector.select(0):  # what came after the last answer that was asked for
                answered += os.read(of.fileno(), CHUNK)
                if answered:
                    raise WrongAnswersError(
                        f"it printed {answered[:80].decode(errors='replace')!r} without being asked", TIDY
                    )
            selector.register(to, selectors.EVENT_WRITE)
            while of in selector.get_map() and (ends or rest or answered.count(b"\n") < count):
                if not (ready := selector.select(max(deadline - time.monotonic(), 0.0))):
                    raise TimeoutError
                for key, _ in ready:
                    if key.fileobj is to:
                        rest = self._written(to, rest)
                        if not rest:
                            selector.unregister(to)
                            if ends:
                                to.close()
                    elif part := os.read(of.fileno(), CHUNK):
                        answered += part
                        self._require_short(answered, count)
                    else:
                        selector.unregister(of)
        return bytes(answered)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        to, of = self.process.stdin, self.process.stdout
        assert to is not None
        assert of is not None
        os.set_blocking(to.fileno(), False)
        return to, of

    def _written(self, to: IO[bytes], rest: memoryview) -> memoryview:
        """What is left to write; nothing for a program that reads no more, and may have answered nevertheless."""
        try:
            return rest[os.write(to.fileno(), rest[:CHUNK]) :]
        except BrokenPipeError:
            return rest[:0]

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
    is_path = os.sep in word
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


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Ends the input of a process, and the process if it does not end by itself; closes what was open for it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    process.stdout.close()
    errors.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
