"""YAML 1.2 text to plain values and back: bounded in size, without tags, with every mistake named by its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.representer import SafeRepresenter

from draft_core.errors import RecipeError, half_character, one_line, short

DEEPEST = 64  # nested levels of a recipe's YAML
LARGEST = 100_000  # values in a recipe's YAML, each alias counted as what it stands for


def read_yaml(path: Path) -> tuple[str, Path, Mapping[str, Any]]:
    """A file's name, its folder, and the fields that it holds.

    Raises:
        RecipeError: if it cannot be read, or holds anything but fields.
    """
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), next="check the path of the recipe") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"it is not text in UTF-8 (byte {error.start + 1} is not)",
            where=str(path),
            next="give a recipe, which is a YAML file; if it is one, save it as UTF-8",
        ) from error
    except OSError as error:
        raise RecipeError(
            f"cannot be read ({error.strerror})", where=str(path), next="check the path and its permissions"
        ) from error
    except ValueError as error:
        raise RecipeError(
            f"it is not plain YAML ({one_line(error)})", where=str(path), next="mend it at that line"
        ) from error
    if data is None:
        raise RecipeError("it is empty", where=str(path), next="write a recipe; `draft schema` describes its fields")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"only {short(repr(data))}"
        raise RecipeError(f"it holds {kind}, not fields", where=str(path), next="see `draft schema` for the fields")
    return str(path), path.parent, data


def set_field(data: dict[str, Any], override: str) -> None:
    """Lays one "path.to.field=value" over `data`, in target.

    Raises:
        RecipeError: if it is not of that form, or the path runs through something that is no mapping or list.
    """
    path, equals, text = override.partition("=")
    where = f"--set {short(override)}"
    if not equals or not path:
        raise RecipeError("it is not of the form field=value", where=where, next="write for example train.steps=50")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"its value is not YAML ({one_line(error)})", where=where, next="quote it") from error
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise RecipeError(f"its path has {len(parents) + 1} parts", where=where, next="check the path")
    target: Any = data
    for key in parents:
        target = target.setdefault(key, {}) if isinstance(target, dict) else _list_item(target, key, where)
    if isinstance(target, dict):
        target[last] = value
    else:
        _list_item(target, last, where)
        target[int(last)] = value


def plain_copy(value: Any) -> Any:
    """A deep copy in dicts and lists, which overrides may change."""
    if isinstance(value, Mapping):
        return {key: plain_copy(item) for key, item in value.items()}
    return [plain_copy(item) for item in value] if isinstance(value, (list, tuple)) else value


# YAML


def parse_yaml(text: str) -> Any:
    """What a YAML 1.2 document says, by the core schema (yaml.org, spec 1.2.2, section 10.3): no tags, no merging.

    Raises:
        ValueError: if it is no YAML, has a tag, names a field twice, or would unfold to more than a recipe can hold;
            the message names the line.
    """
    builder = _Builder()
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except Exception as error:  # beside YAMLError, ruamel.yaml lets through what its scanner stumbles over
        raise ValueError(_marked(error) or short(one_line(error)) or type(error).__name__) from error
    return builder.document


def _marked(error: Exception) -> str | None:
    """What ruamel.yaml stumbles over, and where, without its quotation of the text."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem or mark is None:
        return None
    hint = ""
    if "'\\t'" in problem:
        hint = "; YAML is indented by blanks, not by tabs"
    elif "expected <block end>" in problem or "mapping values" in problem:
        hint = "; a text that begins with a quote, or holds a colon, stands in quotes as a whole"
    return f"{short(problem)} in line {mark.line + 1}, column {mark.column + 1}{hint}"


def dump_yaml(value: Any) -> str:
    """A value of dicts, lists, texts, numbers, booleans and None as YAML that `parse_yaml` reads back the same.

    Raises:
        YAMLError: if a value is of another kind.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


@dataclass
class _Open:
    """A list or mapping whose items are still being read."""

    value: Any
    anchor: str | None
    mark: Any
    size: int = 1
    levels: int = 1
    key: Any = None
    awaits_value: bool = False


class _Builder:
    """Makes values from parser events, counting every alias as what it stands for."""

    def __init__(self) -> None:
        self.document: Any = None
        self.documents = 0
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int] | None] = {}  # value, size, levels; None while it is read

    def take(self, event: Any) -> None:
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            _refuse_if(self.documents > 1, "a second document begins", event.start_mark)
        elif isinstance(event, AliasEvent):
            _refuse_if(
                event.anchor not in self.anchors, f"there is no anchor {short(event.anchor)!r}", event.start_mark
            )
            known = self.anchors[event.anchor]
            if known is None:
                _refuse_if(True, "an alias holds itself", event.start_mark)
            else:
                self.add(*known, event.start_mark)
        elif isinstance(event, (ScalarEvent, SequenceStartEvent, MappingStartEvent)):
            _refuse_if(event.ctag is not None, f"it has the tag {short(str(event.ctag))}", event.start_mark)
            if isinstance(event, ScalarEvent):
                half = half_character(event.value)
                _refuse_if(half is not None, f"it holds {half}, which is no character,", event.start_mark)
                value = _number_or_text(event)
                if event.anchor:
                    self.anchors[event.anchor] = (value, 1, 1)
                self.add(value, 1, 1, event.start_mark)
            else:
                if event.anchor:
                    self.anchors[event.anchor] = None
                value = [] if isinstance(event, SequenceStartEvent) else {}
                self.open.append(_Open(value, event.anchor, event.start_mark))
                self.check(len(self.open), 1, event.start_mark)
        elif isinstance(event, (SequenceEndEvent, MappingEndEvent)):
            done = self.open.pop()
            if done.anchor:
                self.anchors[done.anchor] = (done.value, done.size, done.levels)
            self.add(done.value, done.size, done.levels, done.mark)

    def add(self, value: Any, size: int, levels: int, mark: Any) -> None:
        """Puts a value into what is open, or makes it the document."""
        if not self.open:
            self.document = value
            return
        parent = self.open[-1]
        parent.size += size
        parent.levels = max(parent.levels, 1 + levels)
        self.check(len(self.open) + levels, parent.size, mark)
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.awaits_value:
            parent.value[parent.key] = value
            parent.awaits_value = False
        else:
            _refuse_if(isinstance(value, (list, dict)), "a field's name is a list or a mapping", mark)
            _refuse_if(value in parent.value, f"the field {short(str(value))!r} stands there twice", mark)
            parent.key, parent.awaits_value = value, True

    def check(self, levels: int, size: int, mark: Any) -> None:
        _refuse_if(levels > DEEPEST, f"it is nested deeper than {DEEPEST} levels", mark)
        _refuse_if(size > LARGEST, f"it unfolds to more than {LARGEST} values", mark)


class _Representer(SafeRepresenter):
    """Quotes each text that would be read as something else, and repeats what stands in two places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(representer: SafeRepresenter, text: str) -> Any:
    style = None if isinstance(_plain_value(text), str) else "'"
    if "\x85" in text:  # a line end in YAML 1.1, which ruamel.yaml writes unescaped and reads as a space
        style = '"'
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _represent_text)

_CORE_SCHEMA: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)


def _number_or_text(event: Any) -> Any:
    if not event.implicit[0]:  # quoted
        return event.value
    try:
        return _plain_value(event.value)
    except ValueError:  # Python converts no integer of thousands of digits
        _refuse_if(True, f"the number {event.value[:20]}... has too many digits", event.start_mark)


def _plain_value(text: str) -> Any:
    """What a text without quotes means."""
    return next((convert(text) for form, convert in _CORE_SCHEMA if form.fullmatch(text)), text)


def _refuse_if(refused: bool, problem: str, mark: Any) -> None:
    if refused:
        raise ValueError(f"{problem} in line {mark.line + 1}, column {mark.column + 1}")


def _list_item(target: Any, key: str, where: str) -> Any:
    if not isinstance(target, list):
        raise RecipeError(
            f"there is no field {short(key)!r} in {short(repr(target))}", where=where, next="check the path"
        )
    if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(target):
        raise RecipeError(
            f"{short(key)!r} is no index of a list of {len(target)}", where=where, next=f"use 0 to {len(target) - 1}"
        )
    return target[int(key)]


# Texts


def exists(is_there: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path is there; what cannot be a path, such as a text of a thousand letters, is not."""
    try:
        return is_there(path)
    except (OSError, ValueError):
        return False
