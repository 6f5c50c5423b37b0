"""A process of another Python that answers questions: JSON lines over pipes, each answer within a time.

Come here when a worker does not start, does not answer or does not end. The process has a session of its own, on
Windows a process group: Ctrl-C reaches the run alone, which finishes its update. It ends when its input ends, so also
when this process is killed. What is for Windows alone was never run.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import draft_core
from draft_core.errors import DraftError, RewardError, from_fields
from draft_core.workers.needs import core_requirements, pip_install

BOOTSTRAP = Path(draft_core.__file__).with_name("reward_process") / "bootstrap.py"
START = 120.0  # seconds until a Python that loads nothing heavy has said that it is there
LAST_LINES = 5  # of the standard error that a message repeats
MOST_LETTERS = 300  # of one of them
GRACE = 2.0  # seconds in which a process may end by itself once its input has ended
# What leads a Python to the packages of another one.
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "DRAFT_PLUGINS")


class WorkerDiedError(Exception):
    """The process ended before it answered; the text says how."""


class WorkerProcess:
    """A process of some Python that runs `draft_core.reward_process`.

    Its `draft_core` is this one, whatever that environment has installed: both sides are always of one version.

    Arguments:
        python: the interpreter's path.
        where: begins the sentence of every error.

    Raises:
        DraftError: if it cannot be started, is no Python that this core runs on, or lacks a package that the core
            needs; the sentence names the pip command.
    """

    def __init__(self, python: Path, *, where: str) -> None:
        self.python, self.where = python, where
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        try:
            self.process = subprocess.Popen(
                [str(python), str(BOOTSTRAP), str(Path(draft_core.__file__).parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**environment, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
                **_apart(),
            )
        except (OSError, ValueError) as error:
            raise RewardError(
                f"{python} cannot be started ({getattr(error, 'strerror', None) or error})",
                where=where,
                next="name the Python of an environment, such as .../bin/python",
            ) from error
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # lines; an empty one is the end
        self._said: deque[bytes] = deque(maxlen=LAST_LINES)
        self._readers = [
            _started(_read_lines, self.process.stdout, self._answers),
            _started(_keep_last, self.process.stderr, self._said),
        ]
        self.close = weakref.finalize(self, _end, self.process, self._readers)  # at the latest when Python ends
        try:
            missing = self._receive(START).get("missing")
        except WorkerDiedError as error:
            raise RewardError(
                f"{python} is no Python that rewards run in ({error})",
                where=where,
                next="name the Python of an environment, such as .../bin/python",
            ) from None
        if missing is not None:
            self.close()
            raise self._missing(missing)

    def ask(self, question: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        """The answer to a question.

        Arguments:
            question: anything that JSON can say; `do` names what is asked for.
            timeout: seconds.

        Raises:
            DraftError: the one that the process answered with; or if it does not answer in time, when it is killed.
            WorkerDiedError: if it ends before it answers.
        """
        assert self.process.stdin is not None
        try:
            with suppress(OSError):  # it has ended; what it said last is read below
                self.process.stdin.write(json.dumps(question).encode() + b"\n")
                self.process.stdin.flush()
            return self._receive(timeout)
        except (WorkerDiedError, DraftError):
            raise
        except BaseException:  # Ctrl-C, say: an answer that nobody awaits must not meet the next question
            self.kill()
            raise

    def kill(self) -> None:
        """Ends it at once, and all that it started."""
        _kill(self.process)
        self.close()

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise self._error(
                f"it has not answered within {timeout:g} s", next="raise environment.timeout, or see what it waits for"
            ) from None
        if not line:
            raise WorkerDiedError(self._how_it_ended())
        try:
            answer: dict[str, Any] = json.loads(line)
            refusal = answer.get("error")
        except (ValueError, AttributeError):
            self.kill()
            raise self._error(f"it answered {line[:80].decode(errors='replace')!r}, which is no answer") from None
        if refusal is not None:
            raise from_fields({**refusal, "where": refusal["where"] or self.where})
        return answer

    def _missing(self, told: Mapping[str, Any]) -> RewardError:
        """What that Python lacks, and the command that installs it."""
        if not told["missing"]:
            return RewardError(
                str(told["what"]), where=f"{self.where}: {self.python}", next="make one of a newer Python"
            )
        command = pip_install(self.python, core_requirements())
        return RewardError(
            f"a package is missing that every reward needs ({told['what']})",
            where=f"{self.where}: {self.python}",
            next=f"run {command}",
        )

    def _error(self, what: str, next: str | None = None) -> RewardError:
        said = self.last_words()
        return RewardError(f"{what}; its last words: {said}" if said else what, where=self.where, next=next)

    def _how_it_ended(self) -> str:
        """How the process ended, and its last words."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.returncode
        self.kill()
        if code is None:
            how = "it closed its output"
        elif code >= 0:
            how = f"it ended with exit code {code}"
        else:
            how = f"it was ended by {_signal_name(-code)}"
        said = self.last_words()
        return f"{how}; its last words: {said}" if said else how

    def last_words(self) -> str:
        """The last lines of its standard error, joined by bars."""
        self._readers[1].join(GRACE if self.process.poll() is not None else 0.0)
        lines = [line.decode("utf-8", errors="replace").strip() for line in self._said]
        return " | ".join(line[:MOST_LETTERS] for line in lines if line)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name


def _started(work: Any, *words: Any) -> threading.Thread:
    """A thread that does this, and keeps no interpreter from ending."""
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    return thread


def _read_lines(pipe: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    with pipe, suppress(OSError, ValueError):
        for line in pipe:
            answers.put(line)
    answers.put(b"")


def _keep_last(pipe: IO[bytes], said: deque[bytes]) -> None:
    with pipe, suppress(OSError, ValueError):
        for line in iter(lambda: pipe.readline(65_536), b""):
            if line.strip():
                said.append(line)


def _end(process: subprocess.Popen[bytes], readers: list[threading.Thread]) -> None:
    """Ends the input of a process, and the process if it does not end by itself."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()
    for reader in readers:
        reader.join(GRACE)


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
    elif process.poll() is None:  # a number that was waited for may be another process' by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
