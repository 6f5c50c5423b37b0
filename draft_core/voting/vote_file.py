"""The file of a person's answers: read it for the format, and for what a killed process can do to the file.

One JSON object a line: `{"prompt": ..., "winner": PATH, "loser": PATH, "tie": false}`, with paths relative to the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from draft_core.errors import DraftError, one_line
from draft_core.json_text import made_of
from draft_core.reporting.run_record import write_whole

VOTES = "votes.jsonl"  # in the folder of a run


@dataclass(frozen=True)
class Vote:
    """One answer.

    Arguments:
        prompt: of both images.
        winner, loser: their files, relative to the folder of the file of votes.
        tie: whether the person could not say; which of the two is called winner then means nothing.
    """

    prompt: str
    winner: str
    loser: str
    tie: bool


class VoteFile:
    """A file of votes that this process alone writes, as a context.

    Every answer is on the disk before `append` returns. A line that a killed process left unfinished is dropped.

    Arguments:
        path: of the file, which is made by the first answer; its folder must be there.

    Attributes:
        votes: what the file holds.

    Raises:
        DraftError: on entering it, if another process writes the file, or a line of it is no vote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.votes: list[Vote] = []
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> VoteFile:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DraftError(
                "another process is writing it", where=str(self.path), next="end that one, or give another --output"
            ) from None
        try:
            self.votes = read_votes(self.path)
            if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
                self._rewrite(self.votes)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def append(self, vote: Vote) -> None:
        """Adds an answer.

        Raises:
            OSError: if it cannot be written; the file is then as before.
        """
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(vote))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise
        self.votes.append(vote)

    def drop_last(self) -> None:
        """Takes the last answer back.

        Raises:
            OSError: if the file cannot be written.
        """
        self._rewrite(self.votes[:-1])
        self.votes.pop()

    def _rewrite(self, votes: Iterable[Vote]) -> None:
        write_whole(self.path, "".join(map(_line, votes)))


def read_votes(path: Path) -> list[Vote]:
    """The votes in a file, without an unfinished line at its end; none if there is no such file.

    Raises:
        DraftError: that names a line which is no vote.
    """
    votes = []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            votes.append(made_of(Vote, json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise DraftError(
                f"line {number} is no vote ({one_line(error)})", where=str(path), next="correct or delete that line"
            ) from None
    return votes


def _line(vote: Vote) -> str:
    return json.dumps(asdict(vote), ensure_ascii=False) + "\n"
