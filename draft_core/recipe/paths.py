"""Makes the paths of a recipe absolute: read it when a path is looked for in another folder than expected."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from draft_core.errors import RecipeError, short
from draft_core.recipe.yaml_text import exists
from draft_core.registry.validation.fields import typed_fields, unwrapped
from draft_core.setting import RecipePath

Settings = TypeVar("Settings")

IS_THERE = {"file": Path.is_file, "folder": Path.is_dir, "either": Path.exists}
PATH_STARTS = ("/", "./", "../", "~")  # of a text that can be nothing but a path


def working_directory(place: str) -> Path:
    """The folder of every path that is not read from a recipe's file."""
    return Path.cwd()


def base_of(folder: Path, overrides: Sequence[str]) -> Callable[[str], Path]:
    """From a field to the folder that its relative paths begin at.

    Arguments:
        folder: of the recipe's file.
        overrides: "field=value" from the command line, whose paths begin at the working directory.
    """
    given = [override.partition("=")[0] for override in overrides]
    return lambda place: Path.cwd() if any(f"{place}.".startswith(f"{field}.") for field in given) else folder


def with_absolute_paths(
    settings: Settings,
    folder_of: Callable[[str], Path],
    *,
    where: str,
    names: Mapping[str, Collection[str]] | None = None,
) -> Settings:
    """Settings of the same type, with every field that is marked as a `RecipePath` absolute.

    Arguments:
        settings: a pydantic model or a dataclass.
        folder_of: from a field, "rewards.0.weights", to the folder that its relative paths begin at.
        where: the recipe, for errors.
        names: field -> what is no path there, beside the words of the mark.

    Raises:
        RecipeError: if there is no such file or folder, where the mark says that there must be.
    """
    return _Paths(folder_of, where, names or {}).of(settings, "")  # type: ignore[no-any-return]


def absolute(text: str, folder: Path) -> Path:
    """A path of a recipe in `folder`, absolute; a link at its end keeps its own name, and with it its suffix.

    Raises:
        ValueError: if it can be no path.
    """
    try:
        path = folder / Path(text).expanduser()
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:  # no such user, a circle of links
        raise ValueError(str(error)) from error


class _Paths:
    def __init__(self, folder_of: Callable[[str], Path], where: str, names: Mapping[str, Collection[str]]) -> None:
        self.folder_of, self.where, self.names = folder_of, where, names

    def of(self, settings: Any, at: str) -> Any:
        """A model or dataclass with the paths in it absolute."""
        changes = {}
        for name, (annotation, marks) in typed_fields(type(settings)).items():
            value = getattr(settings, name)
            changed = self._value(value, annotation, marks, f"{at}.{name}".lstrip("."))
            if changed is not value:
                changes[name] = changed
        if isinstance(settings, BaseModel):
            return settings.model_copy(update=changes) if changes else settings
        return dataclasses.replace(settings, **changes) if changes else settings

    def _value(self, value: Any, annotation: Any, marks: Sequence[Any], at: str) -> Any:
        annotation, marks = unwrapped(annotation, marks)
        if get_origin(annotation) in (Union, types.UnionType):
            member = next((member_type for member_type in get_args(annotation) if _fits(value, member_type)), None)
            return value if member is None else self._value(value, member, marks, at)
        if isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            return self.of(value, at)
        inner = get_args(annotation)
        if isinstance(value, (list, tuple)) and inner:
            of_items = inner if len(inner) == len(value) and ... not in inner else (inner[0],) * len(value)
            return type(value)(
                self._value(item, item_type, (), f"{at}.{index}")
                for index, (item, item_type) in enumerate(zip(value, of_items, strict=True))
            )
        if isinstance(value, dict) and len(inner) == 2:
            return {key: self._value(item, inner[1], (), f"{at}.{key}") for key, item in value.items()}
        mark = next((candidate for candidate in marks if isinstance(candidate, RecipePath)), None)
        return self._path(value, mark, at) if mark and isinstance(value, (str, Path)) else value

    def _path(self, value: str | Path, mark: RecipePath, at: str) -> str | Path:
        text = str(value)
        known = (*mark.words, *self.names.get(at, ()))
        if text in known or "://" in text:
            return value
        folder = self.folder_of(at)
        try:
            path = absolute(text, folder)
        except ValueError as error:
            raise RecipeError(
                f"{short(text)} can be no path ({error})", where=f"{self.where}: {at}", next="correct it"
            ) from None
        if mark.absent == "make" or exists(IS_THERE[mark.of], path):
            return type(value)(path)
        if mark.absent == "keep" and not text.startswith(PATH_STARTS):
            return value
        others = [*(["an hf:// address"] if mark.words else []), *known]
        what = "" if mark.of == "either" else f"{mark.of} "
        raise RecipeError(
            f"there is no {what}{short(str(path))}",
            where=f"{self.where}: {at}",
            next="check the path" + (f", or give {', '.join(others)}" if others else ""),
        )


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of this member of a union."""
    annotation, _ = unwrapped(annotation, ())
    if annotation is Any:
        return True
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_fits(value, member) for member in get_args(annotation))
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and isinstance(value, kind) and not (isinstance(value, str) and kind is Sequence)
