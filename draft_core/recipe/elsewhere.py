"""The entries of a recipe whose rewards live in environments of their own: asked there, and completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draft_core.recipe.schema import RecipeBase
from draft_core.registry.environments import Place, RewardInEnvironment, described

SECTIONS = ("rewards", "metrics")


def are_all_elsewhere(data: Any) -> bool:
    """Whether each reward and metric of a recipe, as YAML says it, has an environment of its own."""
    lists = [data.get(section) for section in SECTIONS] if isinstance(data, Mapping) else []
    entries = [entry for listed in lists if isinstance(listed, list) for entry in listed]
    return bool(entries) and all(isinstance(entry, Mapping) and "environment" in entry for entry in entries)


def with_environments(recipe: RecipeBase, *, where: str, folder: Path, overrides: Sequence[str]) -> RecipeBase:
    """The recipe, each such entry as its environment completes it; no reward is made.

    Arguments:
        where: the recipe, for errors.
        folder: of its file, where relative paths begin.
        overrides: "field=value" from the command line, whose paths begin at the working directory.

    Raises:
        DraftError: if an environment cannot be used, or refuses an entry.
    """
    found: dict[Place, RewardInEnvironment] = {}
    fields: dict[Place, tuple[str, int]] = {}
    for section in SECTIONS:
        for index, config in enumerate(getattr(recipe, section)):
            if isinstance(config, RewardInEnvironment):
                at = f"{section}.{index}"
                whole = any(f"{at}.".startswith(f"{override.partition('=')[0]}.") for override in overrides)
                inner = tuple(it.removeprefix(f"{at}.") for it in overrides if it.startswith(f"{at}."))
                place = Place(f"{where}: {at}", Path.cwd() if whole else folder.absolute(), inner)
                found[place], fields[place] = config, (section, index)
    if not found:
        return recipe
    sections = {section: list(getattr(recipe, section)) for section in SECTIONS}
    for (section, index), complete in zip(fields.values(), described(found), strict=True):
        sections[section][index] = complete
    return recipe.model_copy(update={section: tuple(entries) for section, entries in sections.items()})
