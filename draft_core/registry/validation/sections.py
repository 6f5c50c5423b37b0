"""Which fields a recipe has, and where: what an unknown field is compared with."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from draft_core.errors import short
from draft_core.registry.config import RewardConfig
from draft_core.registry.environments import RewardInEnvironment
from draft_core.registry.validation.fields import typed_fields

NEAR = 0.6  # of difflib's likeness between a misspelt name and the right one
FAR = 0.75  # the same for a name that stands elsewhere

Path = tuple[str, ...]


class Section(NamedTuple):
    """A group of fields: where it stands, its class, and which of its fields must be given."""

    path: Path
    type: type

    @property
    def fields(self) -> list[str]:
        """Their names."""
        further = ["environment"] if issubclass(self.type, RewardConfig) else []  # which makes it another type
        return list(dict.fromkeys([*typed_fields(self.type), *further]))

    @property
    def required(self) -> list[str]:
        """The names of those without a default."""
        if issubclass(self.type, BaseModel):
            return [name for name, field in self.type.model_fields.items() if field.is_required()]
        fields = dataclasses.fields(self.type) if dataclasses.is_dataclass(self.type) else ()
        missing = dataclasses.MISSING
        return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def sections_of(type_: Any, data: Any) -> list[Section]:
    """The sections of a type, those that depend on a `kind` as `data` names it."""
    return list(_of_value(type_, data, None, ()))


def advice_for_unknown(path: Path, sections: Sequence[Section]) -> str:
    """What to do about an unknown field: where it belongs, or how it is spelt, or what is there."""
    parent, name = path[:-1], path[-1]
    beside = [field for section in sections if section.path == parent for field in section.fields]
    shallow_first = sorted(sections, key=lambda section: len(section.path))
    elsewhere = {(*section.path, field): section.path for section in shallow_first for field in section.fields}
    if right := [section for field, section in elsewhere.items() if field[-1] == name and section != parent]:
        if () in right:
            return "it belongs to the top of the recipe, not indented"
        places = " or ".join(f"`{'.'.join(section)}`" for section in right)
        return f"it belongs under {places}; on the command line it is {'.'.join((*right[0], name))}"
    if near := difflib.get_close_matches(name, beside, n=1, cutoff=NEAR):
        return f"did you mean {near[0]!r}?"
    names = list(dict.fromkeys(field[-1] for field in elsewhere))
    if near := difflib.get_close_matches(name, names, n=1, cutoff=FAR):
        return f"did you mean {'.'.join(next(field for field in elsewhere if field[-1] == near[0]))!r}?"
    return f"remove it; the fields there are {short(', '.join(beside))}" if beside else "remove it"


def _of_value(annotation: Any, data: Any, default: Any, path: Path) -> Iterator[Section]:
    classes = list(_classes(annotation))
    if isinstance(data, (list, tuple)):
        for index, item in enumerate(data):
            yield from _of_value(annotation, item, None, (*path, str(index)))
    elif chosen := _chosen(classes, data, default):
        yield Section(path, chosen)
        for name, (inner, _) in typed_fields(chosen).items():
            value = data.get(name) if isinstance(data, Mapping) else None
            yield from _of_value(inner, value, _default(chosen, name), (*path, name))


def _classes(annotation: Any) -> Iterator[type]:
    """The classes with fields in a type, of however many it is made."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if typed_fields(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def _chosen(classes: Sequence[type], data: Any, default: Any) -> type | None:
    """The class that the data is meant to be of: the only one, or the one whose name in the recipe the data holds."""
    if len(classes) == 1:
        return classes[0]
    if isinstance(data, Mapping) and "environment" in data and RewardInEnvironment in classes:
        return RewardInEnvironment
    if isinstance(data, Mapping):
        tags = [value for value in data.values() if isinstance(value, str)]
        return next((candidate for candidate in classes if tag_of(candidate) in tags), None)
    return next((candidate for candidate in classes if type(default) is candidate), None)


def tag_of(type_: Any) -> str | None:
    """What a class of a union is told by, `kind` or the like: the one value that a field of it can have."""
    if not (isinstance(type_, type) and issubclass(type_, BaseModel)):
        return None
    fields = type_.model_fields.values()
    return next((field.default for field in fields if get_args(field.annotation) == (field.default,)), None)


def _default(type_: type, name: str) -> Any:
    return type_.model_fields[name].default if issubclass(type_, BaseModel) else None
