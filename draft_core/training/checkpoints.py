"""Checkpoints on disk: complete or absent, checked when they are read, and nothing in them executes.

A checkpoint is a folder named by its update: adapter.safetensors, optimizer.pt (tensors and numbers only) and
state.json, which also holds the other files' digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from draft_core.errors import CheckpointError, one_line

ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.pt", "state.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Arguments:
        adapter: the LoRA's tensors by name.
        optimizer: `state_dict()` of the optimiser.
        state: numbers and texts: update, seed, and what else the run has to remember.
    """

    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes `folder`, aside first and then renamed, so that it is there whole or not at all; returns it."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)  # but not the folder of the run, if that is gone
    aside.mkdir()
    # Made in memory first: what a full disk does to a file of ours is then an OSError.
    (aside / ADAPTER).write_bytes(save(dict(checkpoint.adapter)))
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    (aside / OPTIMIZER).write_bytes(optimizer.getvalue())
    digests = {name: _digest(aside / name) for name in (ADAPTER, OPTIMIZER)}
    (aside / STATE).write_text(json.dumps({**checkpoint.state, "format": FORMAT, "files": digests}), encoding="utf-8")
    for name in (ADAPTER, OPTIMIZER, STATE):
        _flush_to_disk(aside / name)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    with suppress(OSError):  # not every file system can do that with a folder
        _flush_to_disk(folder.parent)
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
            optimizer=torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True),
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


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
