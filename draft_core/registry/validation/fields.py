"""The typed fields of a class, whether a pydantic model or a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel


def typed_fields(type_: Any) -> dict[str, tuple[Any, Sequence[Any]]]:
    """The fields of a pydantic model or a dataclass by name, each with its type and the marks on it; else none."""
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        return {name: (field.annotation, field.metadata) for name, field in type_.model_fields.items()}
    if not dataclasses.is_dataclass(type_):
        return {}
    hints = get_type_hints(type_, include_extras=True)
    return {field.name: unwrapped(hints[field.name], ()) for field in dataclasses.fields(type_)}


def unwrapped(annotation: Any, marks: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """What is `Annotated`, without that: the type, and these marks with those on it."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return inner, [*marks, *more]
    return annotation, marks
