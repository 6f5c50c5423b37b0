"""Finds what the names in a recipe stand for: prompt lists, prompt files, models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from draft_core.errors import RecipeError, one_line
from draft_core.recipe.yaml_text import exists, short
from draft_core.registry.catalog import Catalog


def resolve_prompts(prompts: str | Sequence[str], catalog: Catalog, *, where: str = "prompts") -> list[str]:
    """The prompts that a list, a plugin's list name or a text file stands for.

    Raises:
        RecipeError: if there is no such list or file, or it holds no prompt.
    """
    if isinstance(prompts, str):
        path = catalog.prompt_lists().get(prompts, Path(prompts))
        if not exists(Path.is_file, path):
            raise RecipeError(
                str(catalog.unknown("prompt list or file", short(prompts), catalog.prompt_lists())).rstrip("."),
                where=where,
            )
        try:
            prompts = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise RecipeError(f"{path} cannot be read as text ({one_line(error)})", where=where) from error
    found = [line for prompt in prompts if (line := prompt.strip())]
    if not found:
        raise RecipeError("there are no prompts", where=where, next="give at least one prompt")
    return found


def locate_pretrained(name: str, catalog: Catalog, *, where: str = "model") -> str:
    """The folder of a pipeline alias or path, or `name` itself where it has the form of a hub name.

    Raises:
        RecipeError: if it is none of the three.
    """
    if name in catalog.pretrained:
        return str(catalog.pretrained[name].spec.folder)
    folder = Path(name)
    if exists(Path.is_dir, folder):
        if not any((folder / index).is_file() for index in ("model_index.json", "modular_model_index.json")):
            raise RecipeError(
                f"folder {name} holds no model_index.json", where=where, next="give a folder in diffusers' format"
            )
        return str(folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    error = catalog.unknown("model", short(name), catalog.pretrained, where=where)
    raise RecipeError(
        error.what, where=where, next=f"{error.next}; a folder must exist, a hub name has the form org/model"
    )
