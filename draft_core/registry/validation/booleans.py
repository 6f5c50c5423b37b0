"""Finds `true` and `false` where a number is meant, which pydantic takes for 1 and 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draft_core.errors import RecipeError


def refuse_booleans(given: Any, made: Any, *, where: str, joint: str = ": ") -> None:
    """That no boolean became a number.

    Arguments:
        given: plain values.
        made: what they were validated as: configs, settings, and lists and mappings of these.
        where: of these values, for errors.
        joint: what stands between `where` and a field.

    Raises:
        RecipeError: naming the first field that holds one.
    """
    if isinstance(given, bool):
        if isinstance(made, (int, float)) and not isinstance(made, bool):
            raise RecipeError(f"input should be a number, not {str(given).lower()}", where=where, next="write a number")
        return
    if isinstance(given, Mapping):
        pairs = [(name, value, _field(made, name)) for name, value in given.items()]
    elif isinstance(given, (list, tuple)) and isinstance(made, (list, tuple)):
        pairs = [(number, *both) for number, both in enumerate(zip(given, made, strict=False))]
    else:
        return
    for name, value, of_made in pairs:
        refuse_booleans(value, of_made, where=f"{where}{joint}{name}", joint=".")


def _field(made: Any, name: Any) -> Any:
    return made.get(name) if isinstance(made, Mapping) else getattr(made, str(name), None)
