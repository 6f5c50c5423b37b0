"""Finds what the names in a recipe stand for: prompt lists, prompt files, models."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from draft_core.errors import WHOLE, RecipeError, half_character, short
from draft_core.evaluation.settings import HELD_OUT, TRAINED_ON, EvaluationSettings
from draft_core.prompt_rows import PromptRow, column_of_argument, row_key
from draft_core.recipe.columns import Reader, check_columns, digest_of, fingerprints, readers, unread, with_rows
from draft_core.recipe.paths import PATH_STARTS, absolute
from draft_core.recipe.prompt_lists import READERS, PromptList, read_prompt_file, rows_of_recipe
from draft_core.recipe.schema import RecipeBase
from draft_core.recipe.yaml_text import exists
from draft_core.registry.catalog import Catalog
from draft_core.registry.specs import HUB_NAME
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
    prompts: str | Sequence[Any] | PromptFile, catalog: Catalog, *, where: str = "prompts"
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
        found = rows_of_recipe(prompts, where=where)
    if not found.prompts:
        raise RecipeError("there are no prompts", where=where, next="give at least one prompt")
    for name, values in {"prompt": found.prompts, **found.columns}.items():
        for number, text in enumerate(values, 1):
            if half := half_character(text):
                raise RecipeError(f"{name} {number} holds {half}, which is no character", where=where, next=WHOLE)
    return found


def given_prompts(text: str, catalog: Catalog, *, where: str) -> list[str]:
    """The prompts that one word of a command line stands for: those of a list or a file, or the word as a prompt.

    Raises:
        RecipeError: as `resolve_prompts`; also for what is nearly the name of a list, or looks like that of a file.
    """
    lists = catalog.prompt_lists()
    if text in lists:
        return rows_of(resolve_prompt_list(text, catalog, where=where))
    if path := _file_at(text):
        return rows_of(resolve_prompt_list(PromptFile(file=str(path)), catalog, where=where))
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


def rows_of(listed: PromptList) -> list[str]:
    """The prompts, with all that stands beside them."""
    columns = listed.columns.items()
    if not columns:
        return list(listed.prompts)
    of_rows = [{name: values[place] for name, values in columns} for place in range(len(listed.prompts))]
    return [PromptRow(prompt, row, listed.folder) for prompt, row in zip(listed.prompts, of_rows, strict=True)]


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
        return catalog.pretrained[name].spec.location
    folder = _folder_at(name)
    if folder:
        if not any((folder / index).is_file() for index in MODEL_INDEXES):
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
    if HUB_NAME.fullmatch(name):
        return name
    error = catalog.unknown("model", short(name), catalog.pretrained, where=where)
    raise RecipeError(
        error.what, where=where, next=f"{error.next}; a folder must exist, a hub name has the form org/model"
    )


def locate_decoder(name: str, *, where: str = "model.decoder") -> str:
    """The folder of a tiny decoder, or `name` itself where it has the form of a hub name.

    Raises:
        RecipeError: if it is neither.
    """
    folder = _folder_at(name)
    if folder and (folder / DECODER_CONFIG).is_file():
        return str(folder)
    if folder:
        raise RecipeError(
            f"folder {name} holds no {DECODER_CONFIG}", where=where, next="give the folder of an AutoencoderTiny"
        )
    if HUB_NAME.fullmatch(name):
        return name
    raise RecipeError(
        f"{short(name)} is neither a folder nor a hub name", where=where, next="give one, such as madebyollin/taesd"
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


# What says that a folder is in diffusers' format: of a classic pipeline, of a modular one.
MODEL_INDEXES = ("model_index.json", "modular_model_index.json")
DECODER_CONFIG = "config.json"  # of a single network
SINGLE_FILE = ".safetensors"  # of all weights of a pipeline; of other formats some execute code


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with all its names looked up once.

    Arguments:
        recipe: with the versions and the number of processes it is run with.
        prompts: for training, rows where columns are read, with what their file says beside each.
        evaluation: the recipe's, or the default where it has none.
        evaluation_prompts: as many as `evaluation.count` at most.
        seeds: of the images of each evaluated prompt.
        location: what `from_pretrained` takes for the model: a folder or a hub name.
        readers: who reads which column of the prompts.
    """

    recipe: RecipeBase
    prompts: PromptList
    evaluation: EvaluationSettings
    evaluation_prompts: tuple[str, ...]
    seeds: range
    location: str
    readers: Sequence[Reader] = ()

    @cached_property
    def prompt_lists(self) -> dict[str, list[str]]:
        """What a run remembers of its prompt lists, whose files may change: field of the recipe -> texts.

        Of a column of images also the digests of the files, and that of the users' file.
        """
        trained, held_out = self.prompts.prompts, self.evaluation_prompts
        columns = {f"prompts.{name}": list(values) for name, values in self.prompts.columns.items()}
        names = sorted({name for prompt in held_out for name in getattr(prompt, "columns", {})})
        evaluated = {f"evaluation.prompts.{name}": [prompt.columns[name] for prompt in held_out] for name in names}  # type: ignore[attr-defined]
        files = {f"prompts.{name} (files)": it for name, it in fingerprints(trained, self.readers).items()}
        of_held_out = fingerprints(held_out, self.readers).items()
        files.update({f"evaluation.prompts.{name} (files)": it for name, it in of_held_out})
        if (users := self.recipe.model.users) is not None:
            files["model.users.file (digest)"] = [digest_of(users.file)]
        if (decoder := self.recipe.model.decoder) is not None and (folder := _folder_at(decoder)):
            read = [*folder.glob("*.safetensors"), *folder.glob(DECODER_CONFIG)]
            files["model.decoder (digest)"] = [digest_of(file) for file in sorted(read)]
        return {"prompts": list(trained), **columns, "evaluation.prompts": list(held_out), **evaluated, **files}

    def inputs(self) -> dict[str, list[Path]]:
        """Argument of the call with an image of every prompt -> the files of the evaluated prompts."""
        return {
            argument: [column.of(prompt, where=argument) for prompt in self.evaluation_prompts]
            for argument, name in self.recipe.model.columns.items()
            if (column := column_of_argument(argument, name)).type == "image"
        }

    @property
    def notes(self) -> list[str]:
        """What a person should know of the prompts, a sentence each."""
        return unread(self.prompts, self.readers, self.recipe.method)


def require_recipe(recipe: Any, *, where: str) -> None:
    """Refuses what is no loaded recipe: a mapping of its fields, say, or the name of its file.

    Raises:
        RecipeError: with what it is.
    """
    if not isinstance(recipe, RecipeBase):
        raise RecipeError(
            f"the recipe is a {type(recipe).__name__}", where=where, next="give what `load_recipe(...)` returns"
        )


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
        prompts=training_prompts(recipe, catalog),
        evaluation=evaluation,
        evaluation_prompts=evaluated,
        seeds=range(evaluation.seed, evaluation.seed + evaluation.images_per_prompt),
        location=locate_pretrained(recipe.model.pretrained, catalog),
        readers=readers(recipe, catalog),
    )


def training_prompts(recipe: RecipeBase, catalog: Catalog, *, where: str = "prompts") -> PromptList:
    """The prompts to train on, which carry what is read of their columns.

    Raises:
        RecipeError: as `resolve_prompt_list`, and if the list lacks what is read.
    """
    found = [reader for reader in readers(recipe, catalog) if reader.in_training]
    prompts = with_rows(resolve_prompt_list(recipe.prompts, catalog, where=where), found)
    check_columns(prompts, found, where=where)
    return prompts


def resolve_evaluation(
    recipe: RecipeBase, catalog: Catalog, *, where: str = "", whole: bool = False
) -> tuple[EvaluationSettings, tuple[str, ...]]:
    """The recipe's evaluation, or the default where it has none, and its prompts: as many as `count` at most.

    Arguments:
        where: what stands before the field in an error's sentence.
        whole: give all prompts of the list.

    Raises:
        RecipeError: if there is no such list or file.
    """
    evaluation, held_out = recipe.evaluation or EvaluationSettings(), recipe.held_out_prompts
    count = evaluation.count or (TRAINED_ON if held_out is None else HELD_OUT)
    found, where = readers(recipe, catalog), where + ("prompts" if held_out is None else "evaluation.prompts")
    prompts = recipe.prompts if held_out is None else held_out
    listed = with_rows(resolve_prompt_list(prompts, catalog, where=where), found)
    check_columns(listed, found, where=where)
    evaluated = list(listed.prompts)
    if held_out is None:  # a file of pairs may hold a prompt several times
        first: dict[str, str] = {}
        for prompt in evaluated:
            first.setdefault(row_key(prompt), prompt)
        evaluated = list(first.values())
    return evaluation, tuple(evaluated if whole else evaluated[:count])
