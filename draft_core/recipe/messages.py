"""Validates plain values against a recipe's type, and says in one sentence what is wrong with them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from draft_core.errors import DraftError, PluginError, RecipeError, one_line, raised_at
from draft_core.recipe.yaml_text import short
from draft_core.registry.catalog import Catalog


def validate(type_: Any, data: Any, catalog: Catalog, *, where: str) -> Any:
    """`data` as a value of `type_`.

    Raises:
        RecipeError, PluginError: one sentence on the first problem, with the number of further ones.
    """
    try:
        return TypeAdapter(type_).validate_python(data)
    except ValidationError as error:
        problems = _without_echoes(error.errors(include_url=False, include_context=True))
    except DraftError:
        raise
    except Exception as error:  # of a plugin's own validator; pydantic catches ValueError and AssertionError alone
        raise PluginError(
            f"a validator raised {type(error).__name__}: {one_line(error)}{raised_at(error)}",
            where=where,
            next="tell its author",
        ) from error
    raise _readable(problems[0], len(problems) - 1, type_, data, catalog, where)


# pydantic's errors


def _without_echoes(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaint that a list is too short, where it is so because its items were refused.

    And with one complaint about a kind that is not known, wherever it stands.
    """
    refused = [problem["loc"] for problem in problems]
    tags = [problem.get("ctx", {}).get("tag") for problem in problems]
    return [
        problem
        for place, problem in enumerate(problems)
        if not (
            problem["type"] == "too_short"
            and any(loc[: len(problem["loc"])] == problem["loc"] for loc in refused if loc != problem["loc"])
        )
        and (tags[place] is None or tags.index(tags[place]) == place)
    ]


def _readable(problem: ErrorDetails, further: int, type_: Any, data: Any, catalog: Catalog, where: str) -> DraftError:
    path = _path_in(data, problem["loc"])
    field = short(".".join(path))
    place = f"{where}: {field}" if field else where
    more = f" (and {further} more problem{'s' if further > 1 else ''})" if further else ""
    kind, context = problem["type"], problem.get("ctx", {})
    is_reward = path[:1] != ["method"]
    tag_field = context.get("discriminator", "'kind'").strip("'")
    if kind == "union_tag_invalid" and tag_field != "kind":
        known_tags = context["expected_tags"].replace("'", "")
        return RecipeError(
            f"unknown {tag_field} {short(repr(context['tag']))}{more}", where=place, next=f"known: {known_tags}"
        )
    if kind == "union_tag_not_found" and tag_field != "kind":
        return RecipeError(f"it does not say its {tag_field}{more}", where=place, next=f"add `{tag_field}`")
    if kind == "union_tag_invalid":
        known = catalog.rewards if is_reward else catalog.methods
        error = catalog.unknown("reward" if is_reward else "method", short(context["tag"]), known)
        return PluginError(f"{error.what}{more}", where=place, next=error.next)
    if kind == "union_tag_not_found":
        return RecipeError(f"it does not say its kind{more}", where=place, next="add for example `kind: jpeg`")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(path[-1], _fields_beside(problem["loc"], type_, catalog), n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else "remove it"
        return RecipeError(f"unknown field {short(path[-1])!r}{more}", where=place, next=advice)
    if kind == "missing":
        return RecipeError(f"the field is missing{more}", where=place, next="add it; `draft schema` describes it")
    if kind == "too_short":
        return RecipeError(f"the list is empty{more}", where=place, next="give at least one entry")
    if kind in ("value_error", "assertion_error"):  # of a validator: its author's own words
        said = one_line(context["error"]).rstrip(".") or "its reward or method refuses it"
        given = (
            "" if isinstance(problem["input"], (Mapping, BaseModel)) else f" (it is {short(repr(problem['input']))})"
        )
        return RecipeError(f"{said}{given}{more}", where=place, next="correct the value")
    message = problem["msg"][0].lower() + problem["msg"][1:].replace("valid tuple", "list")
    return RecipeError(f"{message}, not {short(repr(problem['input']))}{more}", where=place, next="correct the value")


def _path_in(data: Any, location: tuple[int | str, ...]) -> list[str]:
    """The fields of a location, without the tags that discriminated unions add: a user does not know those."""
    path = []
    for part in location:
        if isinstance(data, Mapping) and part not in data and part in data.values():
            continue
        path.append(str(part))
        known = (
            part in data if isinstance(data, Mapping) else isinstance(data, (list, tuple)) and part in range(len(data))
        )
        data = data[part] if known else None
    return path


def _fields_beside(location: tuple[int | str, ...], model: Any, catalog: Catalog) -> list[str]:
    """The field names that would have been known where an unknown one was given."""
    for part in location[:-1]:
        if part in catalog.rewards:
            model = catalog.rewards[str(part)].spec.config
        elif location[0] == "method" and part in catalog.methods:
            model = catalog.methods[str(part)].spec.config
        elif tagged := [each for each in getattr(model, "__args__", ()) if part in _defaults(each)]:
            model = tagged[0]
        elif isinstance(part, str):
            model = _model_of_field(model, part)
    return list(_fields_of(model))


def _defaults(model: Any) -> list[Any]:
    return [field.default for field in getattr(model, "model_fields", {}).values()]


def _fields_of(model: Any) -> dict[str, Any]:
    """The fields of a pydantic model or of a dataclass by name; of anything else none."""
    if dataclasses.is_dataclass(model):
        return {field.name: field for field in dataclasses.fields(model)}
    return dict(getattr(model, "model_fields", {}))


def _model_of_field(model: Any, name: str) -> Any:
    field = getattr(model, "model_fields", {}).get(name)
    if field is None:
        return model
    candidates = getattr(field.annotation, "__args__", (field.annotation,))
    models = [
        cls
        for cls in candidates
        if isinstance(cls, type) and (issubclass(cls, BaseModel) or dataclasses.is_dataclass(cls))
    ]
    return models[0] if len(models) == 1 else field.annotation
