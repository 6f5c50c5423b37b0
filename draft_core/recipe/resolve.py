"""Finds what the names in a recipe stand for: prompt lists, prompt files, models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draft_core.errors import RecipeError, one_line
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.schema import RecipeBase
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


# How many of the training prompts are evaluated where the recipe has no evaluation; the report says so.
EVALUATED_PROMPTS = 8


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with all its names looked up once.

    Arguments:
        recipe: with the versions and the number of processes it is run with.
        prompts: for training.
        evaluation: the recipe's, or the default where it has none.
        evaluation_prompts: as many as `evaluation.count` at most.
        seeds: of the images of each evaluated prompt.
        location: what `from_pretrained` takes for the model: a folder or a hub name.
    """

    recipe: RecipeBase
    prompts: tuple[str, ...]
    evaluation: EvaluationSettings
    evaluation_prompts: tuple[str, ...]
    seeds: range
    location: str


def resolve_recipe(
    recipe: RecipeBase, catalog: Catalog, *, versions: Mapping[str, str], processes: int
) -> ResolvedRecipe:
    """The recipe with its prompt lists read and its model located.

    Arguments:
        versions: distribution -> version, of what the run is made with.
        processes: how many make it.

    Raises:
        RecipeError: if there is no such list, file or model.
    """
    evaluation = recipe.evaluation or EvaluationSettings(prompts=recipe.prompts, count=EVALUATED_PROMPTS)
    evaluated = resolve_prompts(evaluation.prompts, catalog, where="evaluation.prompts")
    return ResolvedRecipe(
        recipe=recipe.model_copy(update={"versions": dict(versions), "processes": processes}),
        prompts=tuple(resolve_prompts(recipe.prompts, catalog)),
        evaluation=evaluation,
        evaluation_prompts=tuple(evaluated[: evaluation.count]),
        seeds=range(evaluation.seed, evaluation.seed + evaluation.images_per_prompt),
        location=locate_pretrained(recipe.model.pretrained, catalog),
    )
