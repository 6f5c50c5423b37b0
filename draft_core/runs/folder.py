"""The folder of a run: locked, written whole, restored; read it for what a kill or a full disk can do to a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from draft_core.adapters.adapter import Adapter
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.evaluation.collapse import EvalRecord
from draft_core.recipe.load import dump_recipe
from draft_core.recipe.resolve import ResolvedRecipe
from draft_core.recipe.schema import RecipeBase
from draft_core.reporting.run_record import (
    ERROR,
    EVALUATIONS,
    FACTS,
    IMAGES,
    METRICS,
    PROMPTS,
    RECIPE,
    Facts,
    RunRecord,
    append_row,
    input_name,
    load_images,
    read_rows,
    rewrite_rows,
    save_images,
    write_facts,
    write_whole,
)
from draft_core.rewards.images import read_image
from draft_core.runs.replacement import bring_back, let_go, put_aside
from draft_core.training.checkpoints import (
    checkpoints,
    load_checkpoint,
    prune,
    read_checkpoint,
    save_checkpoint,
)
from draft_core.training.distributed import Processes
from draft_core.training.step_report import StepReport
from draft_core.training.trainer import Trainer

LOCK = ".lock"  # in the folder; it stays there, and only a process that lives holds it
CHECKPOINTS = "checkpoints"  # a folder for each, named by its update

T = TypeVar("T")
Identity = tuple[int, int]  # device and inode of the lock file, which is open as long as the lock is held


@dataclass
class Restored:
    """Where a run stands when it starts or goes on.

    Arguments:
        checkpoint: what was loaded; None at the beginning.
        seconds: that the run took until then.
        evaluations: made until then.
        notes: what a person should know of it, a sentence each.
    """

    checkpoint: Path | None = None
    seconds: float = 0.0
    evaluations: list[EvalRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class RunFolder:
    """The folder of one run, which one run at a time writes.

    Every process calls every method, the main process alone reads and writes. A method that writes raises
    `CheckpointError` where the folder is no longer the one that was locked.

    Arguments:
        recipe: of the run, its `output` the folder.
        processes: of the run.
    """

    def __init__(self, recipe: RecipeBase, processes: Processes) -> None:
        self.path = recipe.output
        self.recipe = recipe
        self.processes = processes
        self.lock = FileLock(self.path / LOCK)  # the main process acquires it
        self.identity: Identity | None = None
        self.saved = -1  # the update whose checkpoint was written last

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder is this run's alone inside; at the end an earlier run comes back that was not let go.

        Raises:
            RecipeError: if another process holds it.
        """
        self.processes.on_main(self._lock)
        try:
            yield
        finally:
            if self.processes.rank == 0 and _is_held(self.path, self.identity):
                with suppress(OSError):  # then it comes back when the next run looks at the folder
                    bring_back(self.path, staying=[LOCK])
            self.lock.release()

    def write(self, work: Callable[[], T]) -> T:
        """What `work`, which writes into the folder, returns in the main process; every process gets it.

        Raises:
            CheckpointError: if the folder is no longer the one that was locked; nothing is then written elsewhere.
        """
        return self.processes.on_main(lambda: self._written(work))

    def begin(self, resolved: ResolvedRecipe, *, anew: bool, redraws: bool) -> None:
        """The folder with its recipe and prompts.

        Arguments:
            resolved: what the recipe stands for.
            anew: whether the run starts anew; an earlier one there is then put aside.
            redraws: whether the evaluations so far are deleted.
        """
        self.processes.on_main(partial(_prepare, self.path, resolved, anew=anew, redraws=redraws))

    def let_go(self) -> None:
        """Deletes the run that was put aside: this one has shown that it evaluates and trains."""
        self.write(partial(let_go, self.path))

    def append(self, report: StepReport) -> None:
        """Adds an update's report."""
        self.write(partial(append_row, self.path / METRICS, report))

    def save_images(self, of: int | str, images: torch.Tensor) -> None:
        """Writes images (N, 3, H, W) in [0, 1] as 8-bit PNG files."""
        self.write(partial(save_images, self.path, of, images))

    def restore(self, trainer: Trainer) -> Restored:
        """Puts the trainer where the newest usable checkpoint left it, or leaves it at its beginning.

        Raises:
            CheckpointError: if a checkpoint is of another run, or none of several can be used.
        """
        found = self.write(partial(self._restore, trainer))
        if found.checkpoint is not None and self.processes.rank > 0:
            load_checkpoint(trainer, found.checkpoint)
        return found

    def checkpoint(self, trainer: Trainer, *, seconds: float, spare: int) -> Path:
        """Saves the trainer, deletes checkpoints that are too old, and gives the new one.

        Arguments:
            seconds: that the run took until now.
            spare: the update whose checkpoint is kept however old it is.
        """
        return self.write(partial(self._checkpoint, trainer, seconds, spare))

    def save_adapter(self, adapter: Adapter, *, last: int, best: int) -> None:
        """Writes what was trained, and its best update where that is neither the last nor the base model."""
        self.write(partial(_save_adapter, self.path, adapter, last, best))

    def finish(self, facts: Facts, evaluations: Sequence[EvalRecord], report: Callable[[RunRecord], Path]) -> Path:
        """Writes the report, and last of all the facts, which mark the run as finished; gives the page."""

        def finished() -> Path:
            page = report(record_of(self, facts, evaluations))
            write_facts(self.path, facts)
            return page

        return self.write(finished)

    # In the main process

    def _lock(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise _is_locked(self.path) from None
        self.identity = _identity_of(self.path / LOCK)
        bring_back(self.path, staying=[LOCK])  # of a run that was killed since the folder was looked at

    def _written(self, work: Callable[[], T]) -> T:
        if not is_ours(self):
            raise CheckpointError(
                "the folder of the run was deleted, moved or emptied while it ran",
                where=str(self.path),
                next="put it back to go on, or delete what is left of it, and give the same command again",
            )
        return work()

    def _restore(self, trainer: Trainer) -> Restored:
        found = _load_newest(self.path, trainer, self.processes.world_size)
        for name in (FACTS, ERROR):
            (self.path / name).unlink(missing_ok=True)
        rewrite_rows(self.path / METRICS, _rows_until(self.path / METRICS, StepReport, trainer.done))
        if _are_readable(self.path, 0):
            found.evaluations = _rows_until(self.path / EVALUATIONS, EvalRecord, trainer.done)
        rewrite_rows(self.path / EVALUATIONS, found.evaluations)
        return found

    def _checkpoint(self, trainer: Trainer, seconds: float, spare: int) -> Path:
        folder = self.path / CHECKPOINTS
        if self.saved == trainer.done:  # writing it again would first delete what is there
            return folder / f"{trainer.done:06d}"
        saved = save_checkpoint(
            trainer,
            folder / f"{trainer.done:06d}",
            recipe=dump_recipe(self.recipe),
            versions=self.recipe.versions,
            seconds=seconds,
            processes=self.processes.world_size,
        )
        prune(folder, keep=self.recipe.checkpoint.keep, spare=[spare])
        self.saved = trainer.done
        return saved


# What the main process does


def record_of(folder: RunFolder, facts: Facts, evaluations: Sequence[EvalRecord]) -> RunRecord:
    """What the folder holds of the run so far."""
    recipe = (folder.path / RECIPE).read_text(encoding="utf-8")
    return RunRecord(folder.path, facts, recipe, read_rows(folder.path / METRICS, StepReport), tuple(evaluations))


def is_ours(folder: RunFolder) -> bool:
    """Whether the folder is still the one that was locked."""
    return _is_held(folder.path, folder.identity) and (folder.path / RECIPE).is_file()


def _prepare(folder: Path, resolved: ResolvedRecipe, *, anew: bool, redraws: bool) -> None:
    if anew and any(is_run_file(item) for item in folder.iterdir()):
        put_aside(folder, staying=[LOCK])
    if redraws:
        (folder / EVALUATIONS).unlink(missing_ok=True)
        shutil.rmtree(folder / IMAGES, ignore_errors=True)
    write_whole(folder / RECIPE, dump_recipe(resolved.recipe))
    for argument, images in resolved.inputs().items():
        save_images(folder, input_name(argument), [read_image(image)[0] for image in images])
    write_whole(folder / PROMPTS, json.dumps(resolved.prompt_lists, ensure_ascii=False, indent=1))


def _load_newest(path: Path, trainer: Trainer, processes: int) -> Restored:
    """Loads the newest checkpoint that can be read, and sets those aside that cannot."""
    notes = []
    for folder in reversed(checkpoints(path / CHECKPOINTS)):
        try:
            read_checkpoint(folder)
        except CheckpointError as error:
            notes.append(f"{error} It is left aside, and the one before it taken.")
            aside = folder.with_name(folder.name + ".unusable")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            continue
        state = load_checkpoint(trainer, folder)  # one of another run is an error, and stays where it is
        before, now = state.get("processes", 1), processes
        change = "" if before == now else f", with {now} process(es) instead of {before}: equal but for rounding"
        notes.append(f"going on after update {trainer.done}{change}")
        return Restored(folder, float(state.get("seconds", 0.0)), notes=notes)
    if any((path / CHECKPOINTS).glob("*.unusable")):
        raise CheckpointError(
            "none of its checkpoints can be used", where=str(path), next="start anew with --overwrite"
        )
    return Restored(notes=notes)


def _rows_until(path: Path, kind: Any, update: int) -> list[Any]:
    return [row for row in read_rows(path, kind) if row.update <= update]


def _save_adapter(folder: Path, adapter: Adapter, last: int, best: int) -> None:
    adapter.save(folder / "lora")
    shutil.rmtree(folder / "lora-best", ignore_errors=True)
    if best in (0, last):
        return
    state = adapter.state_dict()
    try:
        adapter.load_state_dict(read_checkpoint(folder / CHECKPOINTS / f"{best:06d}").adapter)
        adapter.save(folder / "lora-best")
    finally:
        adapter.load_state_dict(state)


# Whose a folder is


def require_unlocked(folder: Path) -> None:
    """Puts back what a run that was killed had put aside there; raises a `RecipeError` where a run is being written."""
    if not (folder / LOCK).is_file():
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _is_locked(folder) from None
    except OSError:  # nobody can write there
        return
    try:
        bring_back(folder, staying=[LOCK])
    finally:
        lock.release()


def is_run_file(path: Path) -> bool:
    """Whether a file in the folder is more than the lock and what a run leaves that is killed in its first moment."""
    return path.name != LOCK and not path.name.endswith(".partial")


def _is_locked(folder: Path) -> RecipeError:
    return RecipeError(
        "another process is writing a run there", where=f"output {folder}", next="wait for it, or choose another"
    )


def _is_held(folder: Path, identity: Identity | None) -> bool:
    return identity is not None and _identity_of(folder / LOCK) == identity


def _identity_of(lock: Path) -> Identity | None:
    """What tells a lock file from another of its name; None where there is none."""
    try:
        found = lock.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _are_readable(folder: Path, update: int) -> bool:
    """Whether the images of an evaluation are whole."""
    try:
        load_images(folder, update)
    except DraftError:
        return False
    return True
