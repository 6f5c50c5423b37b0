"""Checkpoints on disk: complete or absent, checked when they are read, and nothing in them executes.

A checkpoint is a folder named by its update: adapter.safetensors, optimizer.pt and learner.pt (tensors, numbers and
texts only) and state.json, which also holds the other files' digests and the number of this format.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from draft_core.errors import CheckpointError, first_line, one_line
from draft_core.prompt_rows import PromptRow, row_key

ADAPTER, OPTIMIZER, LEARNER, STATE = "adapter.safetensors", "optimizer.pt", "learner.pt", "state.json"
FORMAT = 4  # raised whenever the files, their names or what they hold change


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Arguments:
        adapter: the adapter's tensors by name.
        optimizers: trained part ("adapter", or a module of the learner) -> `state_dict()` of its optimiser.
        learner: "state" -> what the learner remembers, "modules" -> the weights of its modules by name.
        state: numbers and texts: update, seed, and what else the run has to remember.
    """

    adapter: Mapping[str, torch.Tensor]
    optimizers: Mapping[str, Any]
    learner: Mapping[str, Any]
    state: Mapping[str, Any]


class Resumable(Protocol):
    """What can be saved and continued: a trainer."""

    def state(self) -> Checkpoint:
        """Everything that `restore` needs."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a `state()`; raises CheckpointError if it does not fit."""
        ...


def save_checkpoint(trainer: Resumable, folder: Path, **remembered: Any) -> Path:
    """Writes `folder` with everything that `load_checkpoint` needs, whole or not at all; returns it.

    Arguments:
        trainer: between two updates.
        folder: replaced if it is there; its parents are made.
        remembered: further numbers and texts, for whoever reads the checkpoint.
    """
    checkpoint = trainer.state()
    return write_checkpoint(folder, replace(checkpoint, state={**checkpoint.state, **remembered}))


def load_checkpoint(trainer: Resumable, folder: Path) -> Mapping[str, Any]:
    """Continues from a folder that `save_checkpoint` wrote; returns its numbers and texts.

    Arguments:
        trainer: made from the same settings, with the same adapter and learner.
        folder: of the checkpoint.

    Raises:
        CheckpointError: if it is missing, torn, or belongs to a run with another seed, adapter or method.
    """
    checkpoint = read_checkpoint(folder)
    try:
        trainer.restore(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(folder), next=error.next) from error
    return checkpoint.state


def require_savable(remembered: Mapping[str, Any]) -> None:
    """That what a learner remembers could stand in a checkpoint; nothing is written.

    Raises:
        CheckpointError: if it could not.
    """
    _saved(remembered)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `folder`, aside first and then renamed, so that it is there whole or not at all; returns it.

    What was there before is renamed too, and deleted last: a kill leaves no half of it under its name.
    """
    aside, before = (folder.with_name(f"{folder.name}.{what}partial") for what in ("", "before."))
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)  # but not the folder of the run, if that is gone
    aside.mkdir()
    # Made in memory first: what a full disk does to a file of ours is then an OSError.
    (aside / ADAPTER).write_bytes(save(dict(checkpoint.adapter)))
    (aside / OPTIMIZER).write_bytes(_saved(checkpoint.optimizers))
    (aside / LEARNER).write_bytes(_saved(checkpoint.learner))
    digests = {name: _digest(aside / name) for name in (ADAPTER, OPTIMIZER, LEARNER)}
    (aside / STATE).write_text(json.dumps({**checkpoint.state, "format": FORMAT, "files": digests}), encoding="utf-8")
    for name in (*digests, STATE):
        with (aside / name).open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
    if folder.is_dir():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    aside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
    with suppress(OSError):  # not every file system can do that with a folder
        _flush_folder(folder.parent)
    return folder


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its digests checked.

    Raises:
        CheckpointError: if a file of it is missing, torn or changed, or of another format.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{STATE} is not of format {FORMAT}")
        for name, digest in dict(state["files"]).items():
            if _digest(folder / Path(name).name) != digest:
                raise ValueError(f"{name} is not the file that was written")
        adapter = load_file(folder / ADAPTER)
        for name, tensor in adapter.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is of {tensor.dtype}, a LoRA is trained in float32")
        return Checkpoint(
            adapter=adapter,
            optimizers=torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True),
            learner=torch.load(folder / LEARNER, map_location="cpu", weights_only=True),
            state=state,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        SafetensorError,
        pickle.PickleError,
    ) as error:
        raise CheckpointError(
            f"cannot be read ({one_line(error)})",
            where=str(folder),
            next="resume from an earlier checkpoint",
        ) from error


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by update, the oldest first; what was not finished is not among them."""
    return sorted(path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


def prune(folder: Path, *, keep: int, spare: Iterable[int] = ()) -> None:
    """Deletes all but the last `keep` checkpoints and those of the updates in `spare`, and what was not finished."""
    for torn in folder.glob("*.partial"):
        shutil.rmtree(torn)
    spared = set(spare)
    for old in checkpoints(folder)[:-keep]:
        if int(old.name) not in spared:
            shutil.rmtree(old)


def _saved(values: Mapping[str, Any]) -> bytes:
    """What torch writes of tensors, numbers and texts.

    Raises:
        CheckpointError: if it holds anything else, which could not be read again.
    """
    file = io.BytesIO()
    try:
        torch.save(values, file)
        torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"the method remembers what cannot be saved and read again ({_reason(error)})",
            next="tell the method's author",
        ) from error
    return file.getvalue()


def _reason(error: Exception) -> str:
    """What is wrong with a value; torch says that after advice about trusting files."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it holds {named[1]}" if named else first_line(error)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Rows of a list of prompts, of which a file keeps only what tells them apart

ROW = "row of the prompts"


def rows_as_keys(value: Any) -> Any:
    """What a learner remembers, each row of a list of prompts in it as a mapping of `ROW` to its key."""
    if isinstance(value, PromptRow):
        return {ROW: row_key(value)}
    if isinstance(value, Mapping):
        return {str(name) if isinstance(name, PromptRow) else name: rows_as_keys(it) for name, it in value.items()}
    return type(value)(map(rows_as_keys, value)) if type(value) in (list, tuple) else value


def keys_as_rows(value: Any, prompts: Iterable[str]) -> Any:
    """What `rows_as_keys` was given, with the rows of these prompts.

    Raises:
        KeyError: if a row is not among them.
    """
    return _keys_as_rows(value, {row_key(prompt): prompt for prompt in prompts})


def _keys_as_rows(value: Any, rows: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {ROW}:
            return rows[value[ROW]]
        return {name: _keys_as_rows(item, rows) for name, item in value.items()}
    return type(value)(_keys_as_rows(item, rows) for item in value) if type(value) in (list, tuple) else value


def require_same(state: Mapping[str, Any], *, seed: int, method: str) -> None:
    """That a checkpoint's state is of a run with this seed and method.

    Raises:
        CheckpointError: naming what differs.
    """
    advice = "resume with the recipe that the run was started with"
    if state.get("seed") != seed:
        raise CheckpointError(f"it was made with seed {state.get('seed')}, this run has seed {seed}", next=advice)
    if (made_by := state.get("method")) != method:
        raise CheckpointError(f"it was made by the method {made_by}, this run's is {method}", next=advice)
