"""The folder of a run: whose it is, and whether a run may start or go on in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draft_core.errors import CheckpointError, DraftError, RecipeError, one_line
from draft_core.recipe.load import dump_recipe
from draft_core.recipe.schema import RecipeBase
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.reporting.run_record import FACTS, RECIPE, load_images

# What may change between the parts of a run without changing what it computes.
HARMLESS = (
    "train.steps",
    "train.sharding",
    "train.max_skipped",
    "checkpoint",
    "tensorboard",
    "output",
    "evaluation.on_collapse",
    "evaluation.scales",
)

Identity = tuple[int, int]  # device and inode of a folder


@contextmanager
def folder_locked(folder: Path) -> Iterator[Identity]:
    """The folder is this process' alone inside; the system lifts the lock when the process ends, however it does.

    Gives what tells the folder from another of its name.

    Raises:
        RecipeError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                "another process is writing a run there",
                where=f"output {folder}",
                next="wait for it, or choose another",
            ) from None
        found = os.fstat(descriptor)
        yield found.st_dev, found.st_ino
    finally:
        os.close(descriptor)


def identity_of(folder: Path) -> Identity | None:
    """What tells a folder from another of its name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def are_readable(folder: Path, of: int) -> bool:
    """Whether the images of a look are whole."""
    try:
        load_images(folder, of)
    except DraftError:
        return False
    return True


def is_continued(recipe: RecipeBase, folder: Path, *, resume: bool, overwrite: bool, force: bool) -> bool:
    """Whether there is a run in the output folder that this one goes on with.

    Raises:
        DraftError: if the folder is not for this run.
    """
    where = f"output {folder}"
    if folder.is_file():
        raise RecipeError("it is a file", where=where, next="name a folder")
    if folder.is_dir():
        with folder_locked(folder):  # asked now, before a model is loaded
            pass
    _require_writable(folder, where)
    # a run that was killed while it wrote its first file has left no more than that file's beginning
    if not (folder.is_dir() and any(not item.name.endswith(".partial") for item in folder.iterdir())):
        if resume:
            raise CheckpointError("there is no run to resume", where=where, next="leave out --resume")
        return False
    if not (folder / RECIPE).is_file():
        raise RecipeError("the folder is not empty and holds no run", where=where, next="choose another folder")
    if overwrite:
        return False
    ways = "replace it with --overwrite, or choose another folder with --set output=..."
    different = _differences(folder, recipe)
    if different and not force:
        raise RecipeError(
            f"the folder holds a run already, with another recipe or other versions: {'; '.join(different)}",
            where=where,
            next=f"continue it all the same with --resume --force, {ways}",
        )
    if (folder / FACTS).is_file() and not resume:
        raise RecipeError(
            "the folder holds a finished run already", where=where, next=f"continue it with --resume, {ways}"
        )
    return True


def _require_writable(folder: Path, where: str) -> None:
    """That the folder can be made and written into, as far as that can be known without doing it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RecipeError(f"{there} is a file", where=where, next="name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        ways = "mend its permissions, or choose another with --set output=..."
        raise RecipeError(f"{there} is not writable", where=where, next=ways)


def _differences(folder: Path, recipe: RecipeBase) -> list[str]:
    """What the run in the folder was started with and would now be otherwise: "field: then -> now"."""
    try:
        then = _by_images(parse_yaml((folder / RECIPE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"it cannot be read ({one_line(error)})", where=str(folder / RECIPE), next="use --overwrite"
        ) from error
    now = _by_images(parse_yaml(dump_recipe(recipe)))
    before, after = _flat(then), _flat(now)
    return [
        f"{name}: {before.get(name, 'nothing')} -> {after.get(name, 'nothing')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
        and not any(name == harmless or name.startswith(f"{harmless}.") for harmless in HARMLESS)
    ]


def _by_images(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with what an update is made of instead of how that is shared out over processes and passes."""
    train = dict(recipe["train"])
    images = {"images per update": images_per_update(recipe)}
    if train.get("normalize") == "scale" or recipe["method"].get("max_drift") is not None:  # of one pass
        images["images per pass"] = images["images per update"] // train["gradient_accumulation_steps"]
    for field in ("batch_size", "gradient_accumulation_steps"):
        train.pop(field)
    rest = {name: value for name, value in recipe.items() if name != "processes"}
    return {**rest, "train": train, **images}


def images_per_update(recipe: Mapping[str, Any]) -> int:
    """Of all processes and accumulated batches; `recipe` as a mapping, as it is in its file."""
    train = recipe["train"]
    return int(recipe.get("processes", 1) * train["batch_size"] * train["gradient_accumulation_steps"])


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{path}.{key}".lstrip(".")).items()}
