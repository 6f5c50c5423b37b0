"""The page of a run under way: written after every evaluation, its state anew in between; nothing of it ends the run.

A page that is read from a file can fetch nothing, so a script in its state loads it again and again.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from shlex import quote

from draft_core.errors import DraftError, Interrupted, one_line, with_type
from draft_core.reporting.rendering import render
from draft_core.reporting.run_record import ERROR, RunRecord, write_whole

BETWEEN = 5.0  # seconds between two writings of the state, at least
PATIENCE = 60.0  # seconds without news after which the page says so, at least
GAPS = 4  # times the longest time without news so far; the longer of both counts
BEGIN, END = "<!-- state -->", "<!-- end of state -->"


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Arguments:
        update: updates made, of `steps`.
        doing: what it does now beside training; empty for nothing.
        seconds_left: until the last update and its evaluation, about; None where that cannot be told yet.
        written: when this was written, in seconds since 1970.
        patience: seconds after which the lack of news is one.
        ended: why the run ended before its report was written; empty while it goes on.
    """

    update: int
    steps: int
    doing: str = ""
    seconds_left: float | None = None
    written: float = 0.0
    patience: float = PATIENCE
    ended: str = ""

    @property
    def when(self) -> str:
        """The moment of writing, for a reader without a script."""
        return datetime.fromtimestamp(self.written, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")

    def html(self) -> str:
        """What the page says of it, between the marks that `LivePage` looks for."""
        return render("state.html.j2", state=self, begin=BEGIN, end=END).strip()


class LivePage:
    """`report.html` of a run under way, written by the main process.

    No method raises: what cannot be written is said once, and the run goes on.

    Arguments:
        folder: of the run.
        steps: updates that the run is to make.
        write: writes the page of a record, of a run under way if there is a state.
        say: takes a sentence for the user.
        may_write: whether the folder is still the run's; asked before each writing.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        *,
        write: Callable[[RunRecord, RunState | None], Path],
        say: Callable[[str], None],
        may_write: Callable[[], bool],
    ) -> None:
        self.path = folder / "report.html"
        self.write = write
        self.say = say
        self.may_write = may_write
        self.state = RunState(0, steps)
        self.around: tuple[str, str] | None = None  # the page before and behind its state; None while there is no page
        self.start: tuple[float, int] | None = None  # when counting of seconds began, and at which update
        self.news = time.monotonic()
        self.longest = 0.0  # seconds without news so far
        self.complained = False

    def renew(self, record: Callable[[], RunRecord], update: int) -> None:
        """Writes the whole page, after an evaluation.

        Arguments:
            update: updates made.
        """
        self.start = self.start or (time.monotonic(), update)
        self._now(update, "")
        self._guarded(lambda: self._renewed(record()))

    def tick(self, stage: str, done: int, total: int) -> None:
        """Writes the state anew, unless it was written a moment ago; takes what `Progress` does, but for the note."""
        update, doing = (done, "") if stage == "train" else (self.state.update, f"{stage}, {done} of {total} images")
        is_due = time.monotonic() - self.news >= BETWEEN
        if self.around is not None and is_due and stage not in ("note", "load"):
            self._now(update, doing)
            self._guarded(self._rewrite)
        elif stage == "train":
            self.state = RunState(update, self.state.steps, written=self.state.written)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside the run goes on; an error that leaves it stands on the page."""
        try:
            yield
        except BaseException as error:
            self.end(error)
            if isinstance(error, Exception) and not isinstance(error, Interrupted):
                told = "".join(traceback.format_exception(error))
                self._guarded(lambda: write_whole(self.path.with_name(ERROR), told))
            raise

    def end(self, error: BaseException) -> None:
        """Says on the page why the run ended before its report was written."""
        if isinstance(error, DraftError):
            why = "; ".join(part for part in (error.what, error.next) if part)
        else:
            why = with_type(error)
        self.state = RunState(self.state.update, self.state.steps, written=time.time(), ended=why)
        if self.around is not None:
            self._guarded(self._rewrite)

    def finish(self, record: RunRecord) -> Path:
        """The report of the finished run, with all that lies beside it; gives the page, written or not."""
        if not self._guarded(lambda: self.write(record, None)):
            self.say(f"`draft report {quote(str(self.path.parent))}` writes the report when that is mended")
            self.end(DraftError("the run is finished, its report could not be written"))
        return self.path

    def _now(self, update: int, doing: str) -> None:
        now = time.monotonic()
        self.longest, self.news = max(self.longest, now - self.news), now
        self.state = RunState(
            update,
            self.state.steps,
            doing,
            self._seconds_left(now, update),
            time.time(),
            max(PATIENCE, GAPS * self.longest),
        )

    def _seconds_left(self, now: float, update: int) -> float | None:
        """By the updates since the start, and the evaluations between them."""
        if self.start is None or update <= self.start[1]:
            return None
        return (now - self.start[0]) / (update - self.start[1]) * (self.state.steps - update)

    def _renewed(self, record: RunRecord) -> None:
        text = self.write(record, self.state).read_text(encoding="utf-8")
        before, mark, rest = text.partition(BEGIN)
        self.around = (before, rest.partition(END)[2]) if mark else None

    def _rewrite(self) -> None:
        assert self.around is not None
        aside = self.path.with_name(self.path.name + ".partial")
        aside.write_text(self.state.html().join(self.around), encoding="utf-8")
        aside.replace(self.path)

    def _guarded(self, work: Callable[[], object]) -> bool:
        """Whether it was done."""
        try:
            if self.may_write():
                work()
        except Exception as error:  # a full disk, images that are gone, or a fault in a page: the run matters more
            if not self.complained:
                self.complained = True
                self.say(f"the page cannot be written ({one_line(error)}); the run goes on without it")
            return False
        return True
