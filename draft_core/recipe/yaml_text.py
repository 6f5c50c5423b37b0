"""YAML text to plain values: read whole, bounded in size, with every mistake named by its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from draft_core.errors import RecipeError, one_line

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
