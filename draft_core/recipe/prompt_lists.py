"""Reads a file of prompts, by its suffix: lines, a table, or JSON, with the columns that stand beside the prompts."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from draft_core.errors import RecipeError, one_line, short
from draft_core.recipe.yaml_text import parse_yaml

COLUMNS = ("prompt", "prompts", "caption", "captions", "text")  # what holds the prompts, in any case of letters

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PromptList:
    """Prompts, and what their file says beside each.

    Arguments:
        prompts: without blanks at their ends, none of them empty.
        columns: name -> as many values as there are prompts; what is no text in a JSON file is written as JSON.
        folder: where relative paths in the columns begin; None is the working directory.
    """

    prompts: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)


def read_prompt_file(path: Path, column: str | None = None, *, where: str) -> PromptList:
    """The prompts of a file.

    `.txt` has one a line, and empty lines count for nothing. `.csv` and `.tsv` begin with the names of their columns.
    `.json` and `.yaml` are a list of texts, a list of objects, or an object of lists; `.jsonl` has a text or an object
    in each line.
    Lines end at a line feed, with or without a carriage return, and nowhere else.

    Arguments:
        path: of the file, UTF-8, or UTF-16 with its mark.
        column: which one holds the prompts; None takes the one that has a name of `COLUMNS`.
        where: the field that names the file; it begins an error's sentence.

    Raises:
        RecipeError: if the file is of another kind, is torn, or does not say which of its columns holds prompts.
    """
    file = _File(path, column, f"{where}: {path}")
    if path.suffix.lower() not in READERS:
        raise file.error(
            f"prompts are not read from {path.suffix or 'files without a suffix'}",
            f"give a file of {', '.join(READERS)}",
        )
    return replace(READERS[path.suffix.lower()](file, _text(file)), folder=path.absolute().parent)


def rows_of_recipe(rows: Sequence[Any], *, where: str) -> PromptList:
    """The prompts of a list in a recipe: texts, of which empty ones count for nothing, or mappings with a prompt each.

    Raises:
        RecipeError: if it holds both, or a mapping does not say its prompt.
    """
    places = ((f"entry {number}", row) for number, row in enumerate(rows, 1))
    return _of_rows(_File(Path(), None, where), places)


@dataclass(frozen=True)
class _File:
    path: Path
    column: str | None
    where: str

    def error(self, what: str, next: str) -> RecipeError:
        return RecipeError(what, where=self.where, next=next)


def _text(file: _File) -> str:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise file.error(f"cannot be read ({error.strerror})", "mend the file or its permissions") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise file.error(f"line {line} is not UTF-8", "save it as UTF-8 text") from error
    if "\0" in text:
        raise file.error(f"line {text[: text.index(chr(0))].count(chr(10)) + 1} holds a zero byte", "give a text file")
    return text


def _read_lines(file: _File, text: str) -> PromptList:
    _refuse_column(file)
    return PromptList(tuple(line for row in text.split("\n") if (line := row.strip())))


def _read_csv(file: _File, text: str) -> PromptList:
    return _of_rows(file, _table(file, text, ","))


def _read_tsv(file: _File, text: str) -> PromptList:
    """Tables of tabs are written with and without quotes around texts; one of both readings fits."""
    try:
        rows = _table(file, text, "\t")
    except RecipeError:
        rows = _table(file, text, "\t", quoting=csv.QUOTE_NONE)
    return _of_rows(file, rows)


def _table(file: _File, text: str, delimiter: str, *, quoting: int = csv.QUOTE_MINIMAL) -> Iterator[tuple[str, Any]]:
    """The rows of a table, each with where it stands."""
    lines = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    found: list[tuple[str, Any]] = []
    names: list[str] | None = None
    try:
        for row in lines:
            if not any(value.strip() for value in row):
                continue
            if names is None:
                names = [name.strip() for name in row]
                continue
            if len(row) != len(names):
                raise file.error(
                    f"line {lines.line_num} holds {len(row)} columns, the first line {len(names)}",
                    "mend that line; a text with a separator in it stands in quotes",
                )
            found.append((f"line {lines.line_num}", dict(zip(names, row, strict=True))))
    except csv.Error as error:
        raise file.error(f"line {lines.line_num} is torn ({error})", "mend that line") from error
    if names and (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise file.error(f"two of its columns are called {twice!r}", "rename one of them")
    if names and not found:
        _chosen(file, names)
    return iter(found)


def _read_json(file: _File, text: str) -> PromptList:
    try:
        value = _json(text)
    except (ValueError, RecursionError) as error:
        hint = "; with an object in each line it is a .jsonl file" if "Extra data" in str(error) else ""
        raise file.error(f"it is no JSON ({one_line(error)})", f"mend it there{hint}") from error
    return _of_document(file, value)


def _json(text: str) -> Any:
    """A JSON value; a ValueError also where an object names a field twice, of which Python's reader keeps the last."""
    return json.loads(text, object_pairs_hook=_fields)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return fields


def _read_yaml(file: _File, text: str) -> PromptList:
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise file.error(f"it is not plain YAML ({one_line(error)})", "mend it at that line") from error
    return _of_document(file, value)


def _of_document(file: _File, value: Any) -> PromptList:
    if isinstance(value, list):
        return _of_rows(file, ((f"entry {number}", row) for number, row in enumerate(value, 1)))
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        return _of_columns(file, value)
    raise file.error(
        "it holds neither a list nor an object of lists", "write a list of texts, or of objects with a prompt each"
    )


def _read_json_lines(file: _File, text: str) -> PromptList:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", _json(line)))
            except (ValueError, RecursionError) as error:
                raise file.error(f"line {number} is no JSON ({one_line(error)})", "mend that line") from error
    return _of_rows(file, iter(rows))


READERS: Mapping[str, Callable[[_File, str], PromptList]] = {
    ".txt": _read_lines,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}


# From rows to prompts


def _of_rows(file: _File, places_and_rows: Iterator[tuple[str, Any]]) -> PromptList:
    """Prompts of rows that are all texts or all objects."""
    rows = list(places_and_rows)
    if rows and all(isinstance(row, str) for _, row in rows):
        _refuse_column(file)
        return PromptList(tuple(_prompt(file, place, row) for place, row in rows))
    for place, row in rows:
        if not isinstance(row, dict):
            raise file.error(f"{place} is {short(repr(row))}", "write texts alone, or objects alone with a prompt each")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if not rows:
        return PromptList(())
    column = _chosen(file, names)
    prompts = tuple(_prompt(file, place, row.get(column)) for place, row in rows)
    others = {name: tuple(_as_text(row.get(name)) for _, row in rows) for name in names if name != column}
    return PromptList(prompts, others)


def _of_columns(file: _File, columns: Mapping[str, Sequence[Any]]) -> PromptList:
    """Prompts of an object of lists, which are columns where they are equally long, and else lists of their own."""
    column = _chosen(file, list(columns))
    prompts = tuple(
        _prompt(file, f"entry {number} of {column}", value) for number, value in enumerate(columns[column], 1)
    )
    if len({len(values) for values in columns.values()}) > 1:
        return PromptList(prompts)
    return PromptList(prompts, {name: tuple(map(_as_text, columns[name])) for name in columns if name != column})


def _chosen(file: _File, names: Sequence[str]) -> str:
    """The column of the prompts."""
    known = short(", ".join(map(repr, names)))
    if file.column is not None:
        if file.column in names:
            return file.column
        near = difflib.get_close_matches(file.column, names, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"its columns are {known}"
        raise file.error(f"it has no column {file.column!r}", advice)
    likely = [name for name in names if name.strip().lower() in COLUMNS]
    if len(likely) == 1:
        return likely[0]
    what = f"{' and '.join(map(repr, likely))} may both hold prompts" if likely else f"none of {known} is called prompt"
    if not file.path.name:
        raise file.error(what, "call the one with the prompts `prompt`; a text with a colon in it stands in quotes")
    if file.where.startswith("--"):  # an option of a command, which takes no more than the file's name
        raise file.error(what, "call the one with the prompts `prompt`, and no other one of these names")
    raise file.error(what, f"say which column holds them: {{file: {file.path.name}, column: ...}}")


def _prompt(file: _File, place: str, value: Any) -> str:
    if not isinstance(value, str):
        found = "missing" if value is None else f"{short(repr(value))}, not a text"
        raise file.error(f"the prompt of {place} is {found}", "give one, or leave the entry out")
    if not value.strip():
        raise file.error(f"the prompt of {place} is empty", "give one, or leave the entry out")
    return value.strip()


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_column(file: _File) -> None:
    if file.column is not None:
        raise file.error(f"its prompts stand in no column {file.column!r}", "leave the column out")
