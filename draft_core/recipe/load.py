"""Loads a recipe file as a validated recipe, checks what its types cannot say, and writes it as YAML again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import BaseModel

from draft_core.errors import DraftError, PluginError, RecipeError, one_line, raised_at
from draft_core.recipe.messages import validate
from draft_core.recipe.paths import base_of, with_absolute_paths
from draft_core.recipe.resolve import locate_pretrained, resolve_prompts
from draft_core.recipe.schema import LARGEST_FLOAT, LARGEST_INTEGER, RecipeBase, recipe_type
from draft_core.recipe.yaml_text import dump_yaml, plain_copy, read_yaml, set_field, short
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import DirectConfig


def load_recipe(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, catalog: Catalog | None = None
) -> RecipeBase:
    """The validated recipe of a YAML file or a mapping, with `overrides` laid over it.

    Its paths are absolute, and what they name is there. They begin at the recipe's folder; those of a mapping and of
    `overrides` at the working directory. No weight is loaded.

    Arguments:
        source: a YAML file's path, or the parsed mapping.
        overrides: "train.steps=50", "rewards.0.quality=90": values are YAML.
        catalog: what can be named; None takes what is installed.

    Raises:
        RecipeError: if it cannot be read or run; the message names the field.
        PluginError: if it names a reward that is not installed.
    """
    catalog = catalog if catalog is not None else load_catalog()
    name, base, data = ("recipe", Path(), source) if isinstance(source, Mapping) else read_yaml(Path(source))
    data = plain_copy(data)
    for override in overrides:
        set_field(data, override)
    try:
        recipe: RecipeBase = validate(recipe_type(catalog), data, catalog, where=name)
        recipe = with_absolute_paths(
            recipe, base_of(base, overrides), where=name, names=_names_that_are_no_paths(catalog)
        )
        _check(recipe, catalog, name)
    except DraftError as error:
        if missing := _missing(data.get("versions"), catalog):
            raise type(error)(
                error.what,
                where=error.where,
                next=f"install what the run was made with: pip install {' '.join(missing)}",
            ) from None
        raise
    return recipe


def dump_recipe(recipe: BaseModel) -> str:
    """The recipe as YAML, defaults written out."""
    return dump_yaml(recipe.model_dump(mode="json", exclude_none=True))


# What validation alone cannot see


def _check(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    if "\0" in str(recipe.output):
        raise RecipeError("a folder's name cannot hold a zero byte", where=f"{where}: output", next="name another")
    for path, number in _numbers(recipe.model_dump()):
        if abs(number) > (LARGEST_FLOAT if isinstance(number, float) else LARGEST_INTEGER):
            raise RecipeError(
                f"{short(repr(number))} is larger than a run can compute with",
                where=f"{where}: {path}",
                next="give a smaller number",
            )
    trained = resolve_prompts(recipe.prompts, catalog, where=f"{where}: prompts")
    if recipe.evaluation:
        held_out = resolve_prompts(recipe.evaluation.prompts, catalog, where=f"{where}: evaluation.prompts")
        if both := [prompt for prompt in held_out if prompt in set(trained)]:
            raise RecipeError(
                f"{len(both)} of its prompts are also trained on, first {both[0]!r}",
                where=f"{where}: evaluation.prompts",
                next="evaluate on prompts that are not trained on",
            )
    method = catalog.method(recipe.method.kind).spec
    for index, reward in enumerate(recipe.rewards if method.needs_gradient else ()):
        if not catalog.reward(reward.kind).spec.differentiable:
            trainable = [kind for kind, entry in catalog.rewards.items() if entry.spec.differentiable]
            raise RecipeError(
                f"reward {reward.kind!r} has no gradient, which method {method.kind!r} needs",
                where=f"{where}: rewards.{index}.kind",
                next=f"train on one of {', '.join(trainable)}, and name {reward.kind!r} under metrics",
            )
    if recipe.train.normalize == "gradient" and not method.needs_gradient:
        raise RecipeError(
            f"method {method.kind!r} takes no gradient of the rewards",
            where=f"{where}: train.normalize",
            next="use scale, or none",
        )
    _check_plan(recipe, catalog, where)
    locate_pretrained(recipe.model.pretrained, catalog, where=f"{where}: model.pretrained")
    try:
        dump_recipe(recipe).encode()
    except Exception as error:  # `model.call` may hold whatever YAML can say; pydantic and ruamel.yaml raise many kinds
        raise RecipeError(
            f"it cannot be written down again ({short(one_line(error))})",
            where=f"{where}: model.call",
            next="give numbers, texts, lists and mappings",
        ) from error


def _check_plan(recipe: RecipeBase, catalog: Catalog, where: str) -> None:
    """That the method has a plan for so many sampler steps."""
    if not isinstance(recipe.method, DirectConfig):
        return
    steps = recipe.model.num_inference_steps
    try:
        recipe.method.plan(steps, Random(0))
    except RecipeError as error:
        raise RecipeError(error.what, where=f"{where}: {error.where}", next=error.next) from None
    except Exception as error:  # of a plugin's method, or of the plan that it makes
        entry = catalog.method(recipe.method.kind)
        reason = (
            error.what
            if isinstance(error, DraftError)
            else f"{type(error).__name__}: {one_line(error)}{raised_at(error)}"
        )
        raise PluginError(
            f"{recipe.method.kind!r} of {entry.distribution} makes no plan for {steps} sampler steps ({short(reason)})",
            where=f"{where}: method",
            next="change its fields or model.num_inference_steps, or tell its author",
        ) from error


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers inside a value, each with the fields that lead to it."""
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{path}.{key}".lstrip("."))


def _missing(versions: Any, catalog: Catalog) -> list[str]:
    """What a run names among its versions and is no longer installed, as pip takes it."""
    if not isinstance(versions, dict):
        return []
    installed = {canonicalize_name(str(each.name)) for each in importlib.metadata.distributions()}
    here = {"python", *catalog.versions(), *installed}
    return [f"{name}=={version}" for name, version in versions.items() if canonicalize_name(str(name)) not in here]


def _names_that_are_no_paths(catalog: Catalog) -> Mapping[str, Collection[str]]:
    lists = catalog.prompt_lists()
    return {"model.pretrained": catalog.pretrained, "prompts": lists, "evaluation.prompts": lists}
