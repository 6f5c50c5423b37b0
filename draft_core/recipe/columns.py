"""What reads the columns of a recipe's prompt lists, whether the lists hold it, and the prompts that carry it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draft_core.errors import DraftError, RecipeError, short
from draft_core.prompt_rows import Column, PromptRow, type_of_argument
from draft_core.recipe.paths import absolute
from draft_core.recipe.prompt_lists import PromptList
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import MethodConfig, RewardConfig
from draft_core.registry.environments import spec_of

HASHED = 16  # letters of a file's digest that a run remembers


@dataclass(frozen=True)
class Reader:
    """Who reads a column of a prompt list.

    Arguments:
        who: such as "reward 'similarity'".
        field: of the recipe, where the column's name is said or can be said.
        in_training: whether the training prompts need it too; those of evaluations always do.
        may_be_blank: whether an empty text is a value, as of a negative prompt.
    """

    who: str
    field: str
    column: Column
    in_training: bool = True
    may_be_blank: bool = False


def readers(recipe: RecipeBase, catalog: Catalog) -> list[Reader]:
    """Who reads which column, in the order of the recipe.

    Raises:
        RecipeError: if an argument of the call takes neither texts nor images for each prompt, or is said twice; if a
            reward reads no column of the name that is said.
    """
    found = []
    for argument, name in recipe.model.columns.items():
        field, kind = f"model.columns.{argument}", type_of_argument(argument)
        if kind is None:
            raise RecipeError(
                f"{short(argument)!r} takes no text or image for each prompt, as far as its name says",
                where=field,
                next="name an argument such as image, control_image, mask_image or negative_prompt; what is the same "
                "for all prompts stands in model.call",
            )
        if argument in recipe.model.call:
            raise RecipeError("model.call says it too", where=field, next="leave one of them out")
        found.append(Reader(f"the call's {argument}", field, Column(name, kind), may_be_blank=kind == "text"))
    if (users := recipe.model.users) is not None:
        found.append(Reader("model.users", "model.users.column", Column(users.column), may_be_blank=True))
    for section, configs in (("rewards", recipe.rewards), ("metrics", recipe.metrics)):
        for index, config in enumerate(configs):
            for known, column in columns_of(config, catalog, where=f"{section}.{index}.columns").items():
                field = f"{section}.{index}.columns.{known}"
                in_training = section == "rewards" or config.kind in recipe.regularizers.kl_gate
                found.append(Reader(f"reward {config.kind!r}", field, column, in_training=in_training))
    return found


def columns_of(config: RewardConfig, catalog: Catalog, *, where: str) -> dict[str, Column]:
    """The columns that a reward reads, by its own names for them.

    Raises:
        RecipeError: if the recipe names one that the reward does not read.
    """
    declared, named = spec_of(config, catalog).columns, config.columns or {}
    if unknown := next((name for name in named if name not in declared), None):
        raise RecipeError(
            f"reward {config.kind!r} reads no column {short(unknown)!r}",
            where=where,
            next=f"it reads {', '.join(declared)}" if declared else "leave it out, it reads none",
        )
    return {name: Column(named.get(name, name), kind) for name, kind in declared.items()}


def with_rows(prompts: PromptList, found: Sequence[Reader]) -> PromptList:
    """The list with prompts that carry what is read; as it is where nothing is read."""
    read = {reader.column.name for reader in found} & prompts.columns.keys()
    if not read:
        return prompts
    rows = [
        PromptRow(prompt, {name: prompts.columns[name][place] for name in sorted(read)}, prompts.folder)
        for place, prompt in enumerate(prompts.prompts)
    ]
    return dataclasses.replace(prompts, prompts=tuple(rows))


def check_columns(prompts: PromptList, found: Sequence[Reader], *, where: str) -> None:
    """That a list has every column that is read, and each row a value of its type in it; images must be files.

    Arguments:
        prompts: as `with_rows` gives it.
        where: the field that names the list; it begins an error's sentence.

    Raises:
        RecipeError: naming the first column or row that does not fit, and who reads it.
    """
    for reader in found:
        name = reader.column.name
        if name not in prompts.columns:
            known = f"has {', '.join(map(repr, prompts.columns))}" if prompts.columns else "has none beside the prompts"
            raise RecipeError(
                f"{reader.who} reads column {short(name)!r}, and the list {short(known)}",
                where=where,
                next=f"add the column, or say in {reader.field} which one it is",
            )
        for number, prompt in enumerate(prompts.prompts, 1):
            try:
                value = reader.column.of(prompt, where=reader.who, may_be_blank=reader.may_be_blank)
                if isinstance(value, Path) and not _is_file(value):
                    raise DraftError(f"there is no file {short(str(value))}", next="check the path")
            except DraftError as error:
                place = f"{where}: row {number}, column {name!r}"
                raise RecipeError(f"{error.what} ({reader.who} reads it)", where=place, next=error.next) from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def unread(prompts: PromptList, found: Sequence[Reader], method: MethodConfig) -> list[str]:
    """A note on the columns that nothing reads; none where the method reads them itself."""
    reads_itself = type(method).check_prompts is not MethodConfig.check_prompts
    names = [] if reads_itself else sorted(prompts.columns.keys() - {reader.column.name for reader in found})
    return [f"nothing reads the column{'s' * (len(names) > 1)} {', '.join(names)} of the prompts"] if names else []


def images_of(prompts: Sequence[str], found: Sequence[Reader]) -> Iterator[tuple[str, list[Path]]]:
    """Each column that is read as images, with the files of the prompts."""
    columns = dict.fromkeys(reader.column for reader in found if reader.column.type == "image")
    for column in columns:
        if all(column.name in getattr(prompt, "columns", {}) for prompt in prompts):
            yield column.name, [column.of(prompt, where=column.name) for prompt in prompts]


def digest_of(file: Path) -> str:
    """The beginning of the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:HASHED]


def fingerprints(prompts: Sequence[str], found: Sequence[Reader]) -> dict[str, list[str]]:
    """Column of images -> the beginning of the SHA-256 of each prompt's file, by which a changed image is noticed."""
    digests: dict[Path, str] = {}
    for _, files in images_of(prompts, found):
        for file in files:
            if file not in digests:
                digests[file] = digest_of(file)
    return {name: [digests[file] for file in files] for name, files in images_of(prompts, found)}


def with_absolute_rows(recipe: RecipeBase, found: Sequence[Reader], folder_of: Callable[[str], Path]) -> RecipeBase:
    """The recipe, the image files in rows that it holds itself relative to its folder no longer."""
    images = {reader.column.name for reader in found if reader.column.type == "image"}

    def of(prompts: Any, field: str) -> Any:
        if not isinstance(prompts, tuple) or not any(isinstance(row, Mapping) for row in prompts):
            return prompts
        folder = folder_of(field)
        return tuple(_row(row, images, folder) if isinstance(row, Mapping) else row for row in prompts)

    changes: dict[str, Any] = {"prompts": of(recipe.prompts, "prompts")}
    if recipe.evaluation is not None:
        held_out = of(recipe.evaluation.prompts, "evaluation.prompts")
        changes["evaluation"] = dataclasses.replace(recipe.evaluation, prompts=held_out)
    return recipe.model_copy(update=changes)


def _row(row: Mapping[str, Any], images: set[str], folder: Path) -> dict[str, Any]:
    return {
        name: str(absolute(value, folder)) if name in images and isinstance(value, str) and value.strip() else value
        for name, value in row.items()
    }
