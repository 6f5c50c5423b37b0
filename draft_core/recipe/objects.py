"""Recipes made of Python objects, and recipes with some fields changed: both are read like YAML of that content."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import BaseModel

from draft_core.evaluation.settings import EvaluationSettings
from draft_core.prompt_rows import PromptRow
from draft_core.recipe.load import load_recipe
from draft_core.recipe.schema import ModelConfig, RecipeBase
from draft_core.recipe.trackers import TrackersConfig
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import MethodConfig, RewardConfig
from draft_core.setting import PromptFile
from draft_core.training.settings import CheckpointSettings, RegularizerSettings, TrainSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Fields = Mapping[str, Any]


class RecipeFields(TypedDict, total=False):
    """The fields of a recipe, as `docs/reference/recipes.md` describes them; a section is an object or its fields."""

    model: ModelConfig | Fields
    prompts: str | Sequence[str | Fields] | PromptFile
    method: MethodConfig | Fields
    rewards: Sequence[RewardConfig | Fields]
    train: TrainSettings | Fields
    regularizers: RegularizerSettings | Fields
    checkpoint: CheckpointSettings | Fields
    evaluation: EvaluationSettings | Fields | None
    metrics: Sequence[RewardConfig | Fields]
    processes: int
    device: str | None
    threads: int | None
    trackers: TrackersConfig | Fields
    output: Path | str
    versions: Mapping[str, str] | None


def new_recipe(catalog: Catalog | None = None, /, **fields: Unpack[RecipeFields]) -> RecipeBase:
    """The recipe of these fields: what `load_recipe` gives for a YAML file that says the same.

    `new_recipe(model=ModelConfig(pretrained="emoji"), prompts="emoji-train", rewards=[{"kind": "jpeg"}])`. Relative
    paths begin at the working directory.

    Arguments:
        catalog: what can be named; None takes what is installed.
        fields: of a recipe, sections as objects of their classes or as mappings.

    Raises:
        RecipeError: if it cannot be run; the message names the field, as for a file.
        PluginError: if it names a reward that is not installed.
    """
    return load_recipe(_plain(fields), catalog=catalog)


def changed(recipe: RecipeBase, catalog: Catalog | None, fields: RecipeFields) -> RecipeBase:
    """The recipe with these fields in the place of its own, read anew: `RecipeBase.with_`."""
    catalog = catalog if catalog is not None else load_catalog()
    before, said = _plain(recipe), _plain(fields)
    model, other = before["model"], said.get("model")
    if isinstance(other, dict) and other.get("pretrained", model["pretrained"]) != model["pretrained"]:
        _forget(model, catalog)
    return load_recipe(_laid_over(before, said), catalog=catalog)


def _forget(model: dict[str, Any], catalog: Catalog) -> None:
    """Takes from a model what the alias that it names brought with it: another one has its own."""
    if model["pretrained"] not in catalog.pretrained:
        return
    for name, value in _plain(catalog.pretrained[model["pretrained"]].spec.call).items():
        for place in (model, model.get("call", {})):
            if name in place and place[name] == value:
                del place[name]


def _laid_over(before: Any, after: Any) -> Any:
    """Fields over fields; of another kind, and lists and values, whole."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    if "kind" in after and after["kind"] != before.get("kind"):
        return after
    return {**before, **{name: _laid_over(before.get(name), value) for name, value in after.items()}}


def _plain(value: Any) -> Any:
    """What YAML would hold: of objects the fields that were said."""
    if isinstance(value, BaseModel):
        kind = {"kind": value.kind} if isinstance(value, (RewardConfig, MethodConfig)) else {}
        return {**kind, **{name: _plain(getattr(value, name)) for name in sorted(value.model_fields_set)}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: _plain(given) for field, given in fields if given != field.default}
    if isinstance(value, PromptRow):
        return {"prompt": str(value), **_plain(value.columns)} if value.columns else str(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
