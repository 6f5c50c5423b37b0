"""What a recipe must know of rewards before any is made, from the catalog of this environment; imports no torch."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from draft_core.errors import DraftError, as_fields
from draft_core.prompt_rows import PromptRow
from draft_core.recipe.paths import base_of, with_absolute_paths
from draft_core.recipe.schema import reward_type
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import RewardConfig
from draft_core.registry.environments import ENTRY, FACTS
from draft_core.registry.validation.messages import validate


def describe(question: Mapping[str, Any]) -> dict[str, Any]:
    """Of each entry its whole config, what its spec says, and the versions behind it; or the error that it is.

    Arguments:
        question: with `entries`, each with its `fields`, the `folder` of its paths, and the `overrides` among them.
    """
    catalog = load_catalog()
    return {"entries": [_described(entry, catalog) for entry in question["entries"]]}


def _described(entry: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    try:
        config = config_of(entry["fields"], catalog, folder=entry["folder"], overrides=entry["overrides"])
    except DraftError as error:
        return {"error": as_fields(error)}
    found = catalog.reward(config.kind)
    spec = found.spec.as_set(config)
    facts = {name: getattr(spec, name) for name in FACTS}
    return {
        "config": config.model_dump(mode="json"),
        "facts": {**facts, "columns": dict(spec.columns)},
        "checks_prompts": type(config).check_prompts is not RewardConfig.check_prompts,
        "least_frames": config.least_frames,
        "versions": {"python": platform.python_version(), **dict(_versions(found.distribution.name))},
    }


def config_of(fields: Mapping[str, Any], catalog: Catalog, *, folder: str, overrides: list[str]) -> RewardConfig:
    """The validated config of an entry, its paths absolute.

    Raises:
        DraftError: whose `where` begins with `ENTRY` in the place of the entry's own.
    """
    kind = fields.get("kind")
    if isinstance(kind, str):
        catalog.reward(kind)  # in a catalog of nothing this says more than the type
    config: RewardConfig = validate(reward_type(catalog), fields, catalog, where=ENTRY)
    return with_absolute_paths(config, base_of(Path(folder), overrides), where=ENTRY)


def check_prompts(question: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses prompts that the reward cannot score.

    Arguments:
        question: with the `config`, and `prompts`: each with its text, its columns and the folder of its paths.

    Raises:
        DraftError: as the config's own check.
    """
    config = config_of(question["config"], load_catalog(), folder=".", overrides=[])
    rows = [
        PromptRow(text, columns, Path(folder) if folder else None) if columns is not None else text
        for text, columns, folder in question["prompts"]
    ]
    config.check_prompts(rows)
    return {}


def _versions(distribution: str) -> Iterator[tuple[str, str]]:
    """The version of torch, of a plugin's distribution, and of what that requires."""
    names = ["torch", distribution]
    with suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires(distribution) or ():
            with suppress(InvalidRequirement):
                names.append(Requirement(text).name)
    for name in dict.fromkeys(canonicalize_name(name) for name in names):
        if name != "draft-core":  # that of a worker is the run's own
            with suppress(importlib.metadata.PackageNotFoundError):
                yield name, importlib.metadata.version(name)
