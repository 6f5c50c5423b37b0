"""From YAML to values, and from what is wrong with them to one sentence.

Names wing, no torch here. May import: errors, catalog.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from draft_core.catalog import Catalog
from draft_core.errors import DraftError, RecipeError, one_line

DEEPEST = 64  # nested levels of a recipe's YAML
LARGEST = 100_000  # values in a recipe's YAML, each alias counted as what it stands for
SHOWN = 200  # characters of a value in an error
UNDER_WAY = (0, 0)


def read_yaml(path: Path) -> tuple[str, Path, Mapping[str, Any]]:
    """A file's name, its folder, and the fields that it holds.

    Raises:
        RecipeError: if it cannot be read, or holds anything but fields.
    """
    try:
        data = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), next="check the path of the recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({one_line(error)})", where=str(path)) from error
    except ValueError as error:
        raise RecipeError(
            f"it is not plain YAML ({one_line(error)})", where=str(path), next="mend it at that line"
        ) from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"it holds {type(data).__name__}, not fields", where=str(path), next="see `draft schema` for the fields"
        )
    return str(path), path.parent, data


def set_field(data: dict[str, Any], override: str) -> None:
    """Lays one "path.to.field=value" over `data`, in place.

    Raises:
        RecipeError: if it is not of that form, or the path runs through something that is no mapping or list.
    """
    path, equals, text = override.partition("=")
    where = f"--set {short(override)}"
    if not equals or not path:
        raise RecipeError("it is not of the form field=value", where=where, next="write for example train.steps=50")
    try:
        value = _parse(text)
    except ValueError as error:
        raise RecipeError(f"its value is not YAML ({one_line(error)})", where=where, next="quote it") from error
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(f"its path has {len(parents) + 1} parts", where=where, next="check the path")
    place: Any = data
    for key in parents:
        place = place.setdefault(key, {}) if isinstance(place, dict) else _list_item(place, key, where)
    if isinstance(place, dict):
        place[last] = value
    else:
        _list_item(place, last, where)
        place[int(last)] = value


def validate(type_: Any, data: Any, catalog: Catalog, *, where: str) -> Any:
    """`data` as a value of `type_`.

    Raises:
        RecipeError, PluginError: one sentence on the first problem, with the number of further ones.
    """
    try:
        return TypeAdapter(type_).validate_python(data)
    except ValidationError as error:
        problems = _without_echoes(error.errors(include_url=False, include_context=True))
    raise _readable(problems[0], len(problems) - 1, type_, data, catalog, where)


def plain_copy(value: Any) -> Any:
    """A deep copy in dicts and lists, which overrides may change."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    return [plain_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


# YAML


def _parse(text: str) -> Any:
    """What plain YAML says.

    Raises:
        ValueError: if it is none, names a field twice, or would unfold to more than a recipe can hold.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _measure(node, {})
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # beside YAMLError, PyYAML lets through what its constructors stumble over
        raise ValueError(short(one_line(error)) or type(error).__name__) from error


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node holds, every alias unfolded, and in how many levels."""
    if known.get(id(node)) == UNDER_WAY:
        raise ValueError(f"an alias holds itself{node.start_mark}")
    if id(node) not in known:
        known[id(node)] = UNDER_WAY
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        if isinstance(node, yaml.MappingNode):
            _require_single_fields(node)
            parts = [part for pair in node.value for part in pair]
        sizes = [_measure(part, known) for part in parts]
        known[id(node)] = 1 + sum(size for size, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
    size, levels = known[id(node)]
    if levels > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels{node.start_mark}")
    if size > LARGEST:
        raise ValueError(f"it unfolds to more than {LARGEST} values{node.start_mark}")
    return size, levels


def _require_single_fields(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is not None and name in seen:
            raise ValueError(f"the field {short(name)!r} stands there twice{key.start_mark}")
        seen.add(name)


def _list_item(place: Any, key: str, where: str) -> Any:
    if not isinstance(place, list):
        raise RecipeError(
            f"there is no field {short(key)!r} in {short(repr(place))}", where=where, next="check the path"
        )
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(place):
        raise RecipeError(
            f"{short(key)!r} is no place in a list of {len(place)}", where=where, next=f"use 0 to {len(place) - 1}"
        )
    return place[int(key)]


# pydantic's errors


def _without_echoes(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaint that a list is too short, where it is so because its items were refused."""
    refused = [problem["loc"] for problem in problems]
    return [
        problem
        for problem in problems
        if problem["type"] != "too_short"
        or not any(loc[: len(problem["loc"])] == problem["loc"] for loc in refused if loc != problem["loc"])
    ]


def _readable(problem: ErrorDetails, further: int, type_: Any, data: Any, catalog: Catalog, where: str) -> DraftError:
    path = _path_in(data, problem["loc"])
    field = short(".".join(path))
    place = f"{where}: {field}" if field else where
    more = f" (and {further} more problem{'s' if further > 1 else ''})" if further else ""
    kind, context = problem["type"], problem.get("ctx", {})
    is_reward = path[:1] != ["estimator"]
    tag_field = context.get("discriminator", "'kind'").strip("'")
    if kind == "union_tag_invalid" and tag_field != "kind":
        known_tags = context["expected_tags"].replace("'", "")
        return RecipeError(
            f"unknown {tag_field} {short(repr(context['tag']))}{more}", where=place, next=f"known: {known_tags}"
        )
    if kind == "union_tag_not_found" and tag_field != "kind":
        return RecipeError(f"it does not say its {tag_field}{more}", where=place, next=f"add `{tag_field}`")
    if kind == "union_tag_invalid" or (kind == "literal_error" and path[-1:] == ["kind"]):
        tag = short(str(context.get("tag", problem["input"])))
        known = catalog.rewards if is_reward else catalog.estimators
        return catalog.unknown("reward" if is_reward else "estimator", tag, known, where=f"{place}{more}")
    if kind == "union_tag_not_found":
        return RecipeError(f"it does not say its kind{more}", where=place, next="add for example `kind: jpeg`")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _fields_beside(problem["loc"], type_, catalog), n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else "remove it"
        return RecipeError(f"unknown field {short(path[-1])!r}{more}", where=place, next=advice)
    if kind == "missing":
        return RecipeError(f"the field is missing{more}", where=place, next="add it; `draft schema` describes it")
    if kind == "too_short":
        return RecipeError(f"the list is empty{more}", where=place, next="give at least one entry")
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
        elif location[0] == "estimator" and part in catalog.estimators:
            model = catalog.estimators[str(part)].spec.config
        elif tagged := [each for each in getattr(model, "__args__", ()) if part in _defaults(each)]:
            model = tagged[0]
        elif isinstance(part, str):
            model = _model_of_field(model, part)
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _defaults(model: Any) -> list[Any]:
    return [field.default for field in getattr(model, "model_fields", {}).values()]


def _model_of_field(model: Any, name: str) -> Any:
    field = getattr(model, "model_fields", {}).get(name)
    if field is None:
        return model
    candidates = getattr(field.annotation, "__args__", (field.annotation,))
    models = [cls for cls in candidates if isinstance(cls, type) and issubclass(cls, BaseModel)]
    return models[0] if len(models) == 1 else field.annotation


# Texts


def exists(is_there: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path is there; what cannot be a path, such as a text of a thousand letters, is not."""
    try:
        return is_there(path)
    except (OSError, ValueError):
        return False


def short(text: str) -> str:
    """No more of a text than an error can show."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
