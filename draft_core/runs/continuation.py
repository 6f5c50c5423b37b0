"""Whether a run may start in its output folder, or goes on with the one there: read it when a folder is refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from draft_core.errors import CheckpointError, RecipeError, one_line
from draft_core.recipe.load import dump_recipe
from draft_core.recipe.schema import RecipeBase
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.reporting.run_record import FACTS, RECIPE
from draft_core.runs.folder import is_run_file, refuse_if_locked

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


def is_continued(recipe: RecipeBase, folder: Path, *, resume: bool, overwrite: bool, force: bool) -> bool:
    """Whether there is a run in the output folder that this one goes on with.

    Raises:
        DraftError: if the folder is not for this run.
    """
    where = f"output {folder}"
    if folder.is_file():
        raise RecipeError("it is a file", where=where, next="name a folder")
    refuse_if_locked(folder)  # asked now, before a model is loaded
    _require_writable(folder, where)
    if not (folder.is_dir() and any(is_run_file(item) for item in folder.iterdir())):
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
    """That the folder can be made and written into; what is made to find that out is removed again."""
    paths = (folder, *folder.absolute().parents)
    there = next(path for path in paths if path.exists())
    if not there.is_dir():
        raise RecipeError(f"{there} is a file", where=where, next="name a folder")
    missing = paths[: paths.index(there)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        ways = "mend its permissions, or choose another folder with --set output=..."
        raise RecipeError(f"{there} is not writable ({error.strerror})", where=where, next=ways) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


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
    """The recipe with the images of an update in place of their shares in processes and passes."""
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
