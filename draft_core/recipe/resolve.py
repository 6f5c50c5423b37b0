"""Finds what the names in a recipe stand for: prompt lists, prompt files, models."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from draft_core.errors import RecipeError
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.paths import PATH_STARTS, absolute
from draft_core.recipe.prompt_lists import READERS, PromptList, read_prompt_file
from draft_core.recipe.schema import RecipeBase
from draft_core.recipe.yaml_text import exists, short
from draft_core.registry.catalog import Catalog
from draft_core.setting import PromptFile


def resolve_prompts(
    prompts: str | Sequence[str] | PromptFile, catalog: Catalog, *, where: str = "prompts"
) -> list[str]:
    """The prompts that a list, a plugin's list name or a file stands for.

    Raises:
        RecipeError: as `resolve_prompt_list`.
    """
    return list(resolve_prompt_list(prompts, catalog, where=where).prompts)


def resolve_prompt_list(
    prompts: str | Sequence[str] | PromptFile, catalog: Catalog, *, where: str = "prompts"
) -> PromptList:
    """The prompts that a list, a plugin's list name or a file stands for, with the columns beside them.

    Raises:
        RecipeError: if there is no such list or file, it cannot be read, or it holds no prompt.
    """
    if isinstance(prompts, PromptFile):
        found = read_prompt_file(Path(prompts.file), prompts.column, where=where)
    elif isinstance(prompts, str):
        path = catalog.prompt_lists().get(prompts, Path(prompts))
        if not exists(Path.is_file, path):
            error = catalog.unknown("prompt list or file", short(prompts), catalog.prompt_lists(), where=where)
            raise RecipeError(
                error.what, where=where, next=f"{error.next}; a prompt itself is written in a list: [{short(prompts)}]"
            )
        found = read_prompt_file(path, where=where)
    else:
        found = PromptList(tuple(text for prompt in prompts if (text := prompt.strip())))
    if not found.prompts:
        raise RecipeError("there are no prompts", where=where, next="give at least one prompt")
    return found


def given_prompts(text: str, catalog: Catalog, *, where: str) -> list[str]:
    """The prompts that one word of a command line stands for: those of a list or a file, or the word as a prompt.

    Raises:
        RecipeError: as `resolve_prompts`; also for what is nearly the name of a list, or looks like that of a file.
    """
    lists = catalog.prompt_lists()
    if text in lists:
        return resolve_prompts(text, catalog, where=where)
    if path := _file_at(text):
        return resolve_prompts(PromptFile(file=str(path)), catalog, where=where)
    is_one_word = not any(letter.isspace() for letter in text)
    if text.lower().endswith(tuple(READERS)) or (is_one_word and text.startswith(PATH_STARTS)):
        raise RecipeError(f"there is no file {short(text)!r}", where=where, next="check the path")
    if near := difflib.get_close_matches(text, lists if is_one_word else (), n=1, cutoff=0.8):
        raise RecipeError(
            f"there is no list {short(text)!r}",
            where=where,
            next=f"did you mean {near[0]!r}? A prompt of this word can be given in a text file",
        )
    return resolve_prompts([text], catalog, where=where)


def _file_at(text: str) -> Path | None:
    """The file of that path; a prompt, which may be too long for a path, has none."""
    try:
        path = absolute(text, Path.cwd())
    except ValueError:
        return None
    return path if exists(Path.is_file, path) else None


def locate_pretrained(name: str, catalog: Catalog, *, where: str = "model") -> str:
    """The folder or file of a pipeline alias or path, or `name` itself where it has the form of a hub name.

    Raises:
        RecipeError: if it is none of them.
    """
    if name in catalog.pretrained:
        return str(catalog.pretrained[name].spec.folder)
    folder = _folder_at(name)
    if folder:
        if not any((folder / index).is_file() for index in ("model_index.json", "modular_model_index.json")):
            raise RecipeError(
                f"folder {name} holds no model_index.json", where=where, next="give a folder in diffusers' format"
            )
        return str(folder)
    if file := _file_at(name):
        if file.suffix.lower() != SINGLE_FILE:
            raise RecipeError(
                f"file {name} is no {SINGLE_FILE} file", where=where, next="convert it, or give a folder or a hub name"
            )
        return str(file)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    error = catalog.unknown("model", short(name), catalog.pretrained, where=where)
    raise RecipeError(
        error.what, where=where, next=f"{error.next}; a folder must exist, a hub name has the form org/model"
    )


def is_single_file(location: str) -> bool:
    """Whether what `locate_pretrained` gave is one file with all weights."""
    return location.lower().endswith(SINGLE_FILE) and exists(Path.is_file, Path(location))


def _folder_at(text: str) -> Path | None:
    try:
        folder = Path(text).expanduser()
    except RuntimeError:  # no such user
        return None
    return folder if exists(Path.is_dir, folder) else None


SINGLE_FILE = ".safetensors"  # of all weights of a pipeline; of other formats some execute code

# How many of the training prompts are evaluated where the recipe has no evaluation; the report says so.
EVALUATED_PROMPTS = 8


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with all its names looked up once.

    Arguments:
        recipe: with the versions and the number of processes it is run with.
        prompts: for training, with what their file says beside each.
        evaluation: the recipe's, or the default where it has none.
        evaluation_prompts: as many as `evaluation.count` at most.
        seeds: of the images of each evaluated prompt.
        location: what `from_pretrained` takes for the model: a folder or a hub name.
    """

    recipe: RecipeBase
    prompts: PromptList
    evaluation: EvaluationSettings
    evaluation_prompts: tuple[str, ...]
    seeds: range
    location: str

    @property
    def prompt_lists(self) -> dict[str, list[str]]:
        """What a run remembers of its prompt lists, whose files may change: field of the recipe -> texts."""
        columns = {f"prompts.{name}": list(values) for name, values in self.prompts.columns.items()}
        return {"prompts": list(self.prompts.prompts), **columns, "evaluation.prompts": list(self.evaluation_prompts)}


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
    evaluation, evaluated = resolve_evaluation(recipe, catalog)
    return ResolvedRecipe(
        recipe=recipe.model_copy(update={"versions": dict(versions), "processes": processes}),
        prompts=resolve_prompt_list(recipe.prompts, catalog),
        evaluation=evaluation,
        evaluation_prompts=evaluated,
        seeds=range(evaluation.seed, evaluation.seed + evaluation.images_per_prompt),
        location=locate_pretrained(recipe.model.pretrained, catalog),
    )


def resolve_evaluation(recipe: RecipeBase, catalog: Catalog) -> tuple[EvaluationSettings, tuple[str, ...]]:
    """The recipe's evaluation, or the default where it has none, and its prompts: as many as `count` at most.

    Raises:
        RecipeError: if there is no such list or file.
    """
    evaluation = recipe.evaluation or EvaluationSettings(prompts=recipe.prompts, count=EVALUATED_PROMPTS)
    evaluated = resolve_prompts(evaluation.prompts, catalog, where="evaluation.prompts")
    if recipe.evaluation is None:
        evaluated = list(dict.fromkeys(evaluated))  # a file of pairs may hold a prompt several times
    return evaluation, tuple(evaluated[: evaluation.count])
