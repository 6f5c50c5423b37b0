"""JSON that any program reads, numbers that are not finite as null; and dataclasses made of what a JSON file held."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON, of which there is no word for NaN and infinity: they become null.

    Arguments:
        indent: spaces of each level; None for one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def made_of(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """The instance of a dataclass with these fields, each of its declared type.

    Raises:
        TypeError: if a field is missing, unknown or of another type than declared; the message names it.
    """
    made = kind(**values)
    for name, declared in get_type_hints(kind).items():
        if not _fits(getattr(made, name), declared):
            raise TypeError(f"its {name} is {str(values[name])[:60]!r}")
    return made


def _fits(value: Any, declared: Any) -> bool:
    origin, inner = get_origin(declared), get_args(declared)
    if declared is Any:
        return True
    if type(None) in inner or origin is Union:
        return any(_fits(value, option) for option in inner)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
    if origin in (Sequence, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if declared in (int, float):
        return isinstance(value, (int, declared)) and not isinstance(value, bool)
    return isinstance(value, declared)
