"""Whether a run may start in its output folder, or goes on with the one there: read it when a folder is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from draft_core.errors import CheckpointError, DraftError, RecipeError, one_line
from draft_core.recipe.load import dump_recipe
from draft_core.recipe.resolve import ResolvedRecipe
from draft_core.recipe.schema import RecipeBase
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.reporting.run_record import FACTS, PROMPTS, RECIPE
from draft_core.runs.folder import CHECKPOINTS, is_run_file, require_unlocked
from draft_core.setting import images_per_prompt
from draft_core.threads import chosen_threads, computing_with

# What may change between the parts of a run without changing what it computes.
HARMLESS = (
    "train.steps",
    "train.sharding",
    "train.max_skipped",
    "checkpoint",
    "trackers",
    "threads",  # but for the last bits
    "output",
    "evaluation.on_collapse",
    "evaluation.scales",
)


# What may change without changing the images of an evaluation or their scores before weights.
UNSEEN = (
    "evaluation.every",
    "evaluation.tolerance",
    "model.gradient_checkpointing",
    "model.decode",
    "model.decoder",
    "model.decoder (digest)",
    "model.noise",
)
UNSEEN_ENDINGS = (".weight", ".cap", ".cap.quantile", ".worst_within", ".device")


@dataclass(frozen=True)
class Continuation:
    """How a run begins in its folder.

    Arguments:
        goes_on: whether it goes on with the run there.
        redraws: whether the evaluations so far are of other images or scores than those to come.
        notes: what a person should know of it, a sentence each.
    """

    goes_on: bool
    redraws: bool = False
    notes: tuple[str, ...] = ()


def continuation(
    resolved: ResolvedRecipe, *, resume: bool, overwrite: bool, force: bool, is_locked: bool = False
) -> Continuation:
    """Whether there is a run in the output folder that this one goes on with, and how.

    A run that has saved nothing yet is none to go on with: another recipe may take its place.

    Arguments:
        is_locked: whether this run holds the folder's lock already.

    Raises:
        DraftError: if the folder is not for this run.
    """
    folder = resolved.recipe.output
    where = f"output {folder}"
    if folder.is_file():
        raise RecipeError("it is a file", where=where, next="name a folder")
    if not is_locked:
        require_unlocked(folder)  # asked now, before a model is loaded
    _require_writable(folder, where)
    if not (folder.is_dir() and any(is_run_file(item) for item in folder.iterdir())):
        if resume:
            raise CheckpointError("there is no run to resume", where=where, next="leave out --resume")
        return Continuation(False)
    if not (folder / RECIPE).is_file():
        raise RecipeError("the folder is not empty and holds no run", where=where, next="choose another folder")
    if overwrite:
        return Continuation(False)
    has_saved = (folder / FACTS).is_file() or any((folder / CHECKPOINTS).glob("[0-9]*"))
    ways = "replace it with --overwrite, or choose another folder with --set output=FOLDER"
    different = _differences(folder, resolved)
    if different and not has_saved:
        if resume:
            raise CheckpointError("the run there has saved nothing yet", where=where, next="leave out --resume")
        return Continuation(False, notes=(f"the run in {folder} had saved nothing yet, and is replaced",))
    if different and not force:
        shown = "; ".join(f"{name}: {change}" for name, change in different.items())
        raise RecipeError(
            f"the folder holds a run already, with another recipe, other prompts or other versions: {shown}",
            where=where,
            next=f"continue it all the same with --resume --force, {ways}",
        )
    if (folder / FACTS).is_file() and not resume:
        raise RecipeError(
            "the folder holds a finished run already", where=where, next=f"continue it with --resume, {ways}"
        )
    redraws = any(_is_seen(name, resolved.recipe) for name in different)
    note = "the evaluations so far were of other images or scores: they are drawn anew, from the base model's on"
    return Continuation(True, redraws, (note,) if redraws else ())


@contextmanager
def computing(recipe: RecipeBase, *, anew: bool) -> Iterator[tuple[RecipeBase, str | None]]:
    """The threads that the recipe says, or the run in its folder had, or the load leaves; what a GPU does needs none.

    Arguments:
        anew: whether no run in the folder goes on.

    Yields:
        The recipe with the number, and a sentence where the load decided.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if recipe.device not in ("cpu", None) or (recipe.device is None and has_gpu):
        number, note = recipe.threads, None
    else:
        number, note = chosen_threads(recipe.threads, None if anew else _threads_before(recipe.output))
    with computing_with(number):
        yield recipe.model_copy(update={"threads": number}), note


def _threads_before(folder: Path) -> int | None:
    """What the run in the folder filled in; None where there is none, or it cannot be read."""
    try:
        number = parse_yaml((folder / RECIPE).read_text(encoding="utf-8")).get("threads")
    except (OSError, ValueError, AttributeError, DraftError):
        return None
    return number if isinstance(number, int) and number > 0 else None


def _is_seen(field: str, recipe: RecipeBase) -> bool:
    """Whether an evaluation of another value of the field cannot be compared with one of this."""
    first = field.split(".")[0]
    if field in UNSEEN or field.endswith(UNSEEN_ENDINGS):
        return False
    evaluated = ("model", "evaluation", "rewards", "metrics")
    return first in evaluated or (first == "prompts" and recipe.held_out_prompts is None)


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
        ways = "mend its permissions, or choose another folder with --set output=FOLDER"
        raise RecipeError(f"{there} is not writable ({error.strerror})", where=where, next=ways) from error
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _differences(folder: Path, resolved: ResolvedRecipe) -> dict[str, str]:
    """What the run in the folder was started with and would now be otherwise: field -> "then -> now"."""
    of_a_pass = resolved.recipe.method.compares_images
    try:
        then = _by_images(parse_yaml((folder / RECIPE).read_text(encoding="utf-8")), of_a_pass)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"it cannot be read ({one_line(error)})", where=str(folder / RECIPE), next="use --overwrite"
        ) from error
    now = _by_images(parse_yaml(dump_recipe(resolved.recipe)), of_a_pass)
    before, after = _flat(then), _flat(now)
    cools_down = any(part.get("train.cooldown_steps", 0) not in (0, "0") for part in (before, after))
    harmless = set(HARMLESS) - ({"train.steps"} if cools_down else set())  # the last updates depend on it
    fields = {
        name: f"{before.get(name, 'nothing')} -> {after.get(name, 'nothing')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
        and not any(name == field or name.startswith(f"{field}.") for field in harmless)
    }
    if cools_down and "train.steps" in fields:
        fields["train.steps"] += " (the last updates differ, by train.cooldown_steps)"
    return {**fields, **_changed_prompts(folder, resolved, fields)}


def _changed_prompts(folder: Path, resolved: ResolvedRecipe, fields: Mapping[str, str]) -> dict[str, str]:
    """Of each prompt list that holds other prompts than when the run began, its lengths and the first difference.

    What the recipe itself says otherwise is among `fields` already.
    """
    try:
        then = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    changed = {}
    for field, now in resolved.prompt_lists.items():
        before = then.get(field, now)
        if before == now or any(name.startswith(_sources(field, resolved.recipe)) for name in fields):
            continue
        pairs = enumerate(zip_longest(before, now))
        place, (old, new) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
        changed[field] = f"{len(before)} -> {len(now)} texts, number {place + 1} was {old!r} and is {new!r}"
    return changed


def _sources(field: str, recipe: RecipeBase) -> tuple[str, ...]:
    """The fields of the recipe that say what a list of prompts is."""
    if field.startswith("model.users"):
        return ("model.users.file",)
    if field.startswith("model.decoder"):
        return ("model.decoder",)
    if field.startswith("prompts"):
        return ("prompts",)
    return ("prompts" if recipe.held_out_prompts is None else "evaluation.prompts", "evaluation.count")


def _by_images(recipe: Mapping[str, Any], of_a_pass: bool) -> dict[str, Any]:
    """The recipe with the images of an update in place of their shares in processes and passes.

    Arguments:
        of_a_pass: the method judges the images of a pass together, so that its size counts.
    """
    train = dict(recipe["train"])
    images = {"images per update": images_per_update(recipe)}
    if train.get("normalize") == "scale" or of_a_pass:
        images["images per pass"] = images["images per update"] // train["gradient_accumulation_steps"]
    for field in ("batch_size", "gradient_accumulation_steps"):
        train.pop(field)
    rest = {name: value for name, value in recipe.items() if name != "processes"}
    return {**rest, "train": train, **images}


def images_per_update(recipe: Mapping[str, Any]) -> int:
    """Of all processes and accumulated batches; `recipe` as a mapping, as it is in its file."""
    train, images = recipe["train"], images_per_prompt(recipe["model"].get("call") or {})
    return int(recipe.get("processes", 1) * train["batch_size"] * train["gradient_accumulation_steps"] * images)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{path}.{key}".lstrip(".")).items()}
