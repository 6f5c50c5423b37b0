"""Validates plain values against a recipe's type, and says in one sentence what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from draft_core.errors import DraftError, PluginError, RecipeError, one_line, raised, short
from draft_core.registry.catalog import Catalog
from draft_core.registry.validation.booleans import refuse_booleans
from draft_core.registry.validation.sections import NEAR, Section, advice_for_unknown, sections_of

FIELDS = ("model_type", "model_attributes_type", "dataclass_type")  # pydantic's complaints that there are no fields
LISTS = ("tuple_type", "list_type")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
OWN = ("value_error", "assertion_error")  # what a validator of a plugin raises

# What a value should have been, by pydantic's name of the complaint.
WANTED = {
    **dict.fromkeys(FIELDS, "fields"),
    **dict.fromkeys(LISTS, "a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a valid integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a valid number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "path_type": "a path",
    "dict_type": "fields",
}


def validate(type_: Any, data: Any, catalog: Catalog, *, where: str) -> Any:
    """`data` as a value of `type_`.

    Raises:
        RecipeError, PluginError: one sentence on the first problem, with the number of further ones.
    """
    try:
        made = TypeAdapter(type_).validate_python(data)
        refuse_booleans(data, made, where=where)
        return made
    except ValidationError as error:
        raise sentence_of(error, type_, data, catalog, where=where) from None
    except DraftError:
        raise
    except Exception as error:  # of a plugin's own validator
        raise PluginError(
            f"a plugin's check of its fields raised {raised(error, short)}",
            where=where,
            next="tell the plugin's author",
        ) from error


def sentence_of(error: ValidationError, type_: Any, data: Any, catalog: Catalog, *, where: str) -> DraftError:
    """What pydantic found wrong with `data` as a value of `type_`, in one sentence."""
    found = error.errors(include_url=False, include_context=True)
    problems = _without_echoes([_Problem(_path_in(data, details), details) for details in found])
    return _Sentence(data, sections_of(type_, data), catalog, where).of(problems)


def sentence_of_config(error: ValidationError, config: type, fields: Mapping[str, Any]) -> DraftError:
    """The same of a config that is made in Python, whose class is then where it stands."""
    return sentence_of(error, config, fields, Catalog(), where=config.__name__)


class _Problem(NamedTuple):
    """One of pydantic's complaints, and the field that it is about as a user knows it."""

    path: tuple[str, ...]
    details: ErrorDetails

    @property
    def type(self) -> str:
        return self.details["type"]


def _path_in(data: Any, problem: ErrorDetails) -> tuple[str, ...]:
    """The fields of a location, without what pydantic adds for the members of unions: a user does not know those."""
    path: list[str] = []
    *parents, last = problem["loc"] or ("",)
    for part in (*parents, last):
        known = part in data if isinstance(data, Mapping) else part in range(len(data)) if _is_list(data) else False
        if known or isinstance(part, int) or (part is last and problem["type"] == "missing"):
            path.append(str(part))
            data = data[part] if known else None
    return tuple(path)


def _is_list(data: Any) -> bool:
    return isinstance(data, (list, tuple))


def _without_echoes(problems: Sequence[_Problem]) -> list[_Problem]:
    """Without complaints that follow from others: of a list whose items were refused, of the members of a union that
    the value was not meant to be, of a field as missing that is only misspelt, and of an unknown kind a second time.
    """
    kept: list[_Problem] = []
    tags: set[str] = set()
    unknown = [other for other in problems if other.type in UNKNOWN]
    for problem in problems:
        inside = [other for other in problems if len(other.path) > len(problem.path) and _starts(other, problem.path)]
        is_echo = problem.type == "too_short" or problem.type in WANTED
        misspelt = [other.path[-1] for other in unknown if other.path[:-1] == problem.path[:-1]]
        beside = [other.type for other in problems if other.path == problem.path]
        if is_echo and (inside or (problem.type == "dict_type" and "string_type" in beside)):  # a text or a row
            continue
        if problem.type == "missing" and difflib.get_close_matches(problem.path[-1], misspelt, n=1, cutoff=NEAR):
            continue
        if problem.type == "union_tag_invalid":
            tag = problem.details["ctx"]["tag"]
            if tag in tags:
                continue
            tags.add(tag)
        kept.append(problem)
    return kept


def _starts(problem: _Problem, path: tuple[str, ...]) -> bool:
    return problem.path[: len(path)] == path


class _Sentence:
    """What is said of the problems with some data."""

    def __init__(self, data: Any, sections: Sequence[Section], catalog: Catalog, where: str) -> None:
        self.data, self.sections, self.catalog, self.where = data, sections, catalog, where

    def of(self, problems: Sequence[_Problem]) -> DraftError:
        """The error for the first one, with the number of the fields that have others."""
        first = problems[0]
        here = [complaint for complaint in problems if complaint.path == first.path]
        further = len({complaint.path for complaint in problems}) - 1
        more = f" (and {further} more problem{'s' if further > 1 else ''})" if further else ""
        field = short(".".join(first.path))
        place = f"{self.where}: {field}" if field else self.where
        kind, context = first.type, first.details.get("ctx", {})
        tag_field = context.get("discriminator", "'kind'").strip("'")
        if kind == "union_tag_invalid" and tag_field == "kind":
            word, known = self._kinds(first.path)
            error = self.catalog.unknown(word, short(context["tag"]), known)
            return PluginError(f"{error.what}{more}", where=place, next=error.next)
        what, advice = self._sentence(first, here, tag_field)
        return RecipeError(f"{what}{more}", where=place, next=advice)

    def _sentence(self, problem: _Problem, here: Sequence[_Problem], tag_field: str) -> tuple[str, str | None]:
        """What is wrong, and what to do."""
        kind, context, value = problem.type, problem.details.get("ctx", {}), problem.details["input"]
        if kind == "union_tag_invalid":
            known = context["expected_tags"].replace("'", "")
            return f"unknown {tag_field} {short(repr(context['tag']))}", f"known: {known}"
        if kind == "union_tag_not_found":
            advice = self._kind_for(problem.path, value) if tag_field == "kind" else f"add `{tag_field}`"
            return f"it does not say its {tag_field}", advice
        if kind in UNKNOWN:
            return f"unknown field {short(problem.path[-1])!r}", advice_for_unknown(problem.path, self.sections)
        if kind == "missing":
            return "the field is missing", "add it; `draft schema` describes it"
        if kind == "too_short":
            return "the list is empty", "give at least one entry"
        if kind in OWN:
            return short(one_line(context["error"]).rstrip(".")) or "a plugin's check refuses it", None
        if kind == "literal_error":
            return f"input should be {context['expected']}, not {short(repr(value))}", _nearest(value, context)
        # One form of several that the value could have had fits, and then says more than that the others do not.
        fitting = next((complaint for complaint in here if complaint.type not in WANTED), None)
        if fitting is None:
            wanted = list(dict.fromkeys(WANTED[complaint.type] for complaint in here))
            return f"input should be {_either(wanted)}, not {short(repr(value))}", self._form(problem, wanted, value)
        message = fitting.details["msg"]
        return f"{message[0].lower()}{message[1:]}, not {short(repr(value))}", "correct the value"

    # What to write instead

    def _kinds(self, path: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
        """What is named by a kind there, and all of them."""
        return ("method", self.catalog.methods) if path[:1] == ("method",) else ("reward", self.catalog.rewards)

    def _kind_for(self, path: tuple[str, ...], entry: Any) -> str:
        """Which kind to add: one that has the fields that are given, where there is such a one."""
        _, known = self._kinds(path)
        given = list(entry) if isinstance(entry, Mapping) else []
        if named := [name for name in given if name in known]:
            return f"write `kind: {named[0]}`, and its fields beside it"
        fitting = [
            kind
            for kind, known_entry in known.items()
            if given and all(name in known_entry.spec.config.model_fields for name in given)
        ]
        if not fitting:
            return f"add for example `kind: {next(iter(known))}`"
        if len(fitting) == 1:
            return f"add `kind: {fitting[0]}`"
        return f"add `kind: {fitting[0]}`, or another with {_these(given)}: {', '.join(fitting[1:])}"

    def _form(self, problem: _Problem, wanted: Sequence[str], value: Any) -> str:
        """How a value of another type is written."""
        if value is None:
            return "give it a value, or leave the field out"
        if "a text" in wanted and isinstance(value, (bool, int, float)):
            return f'put it in quotes: "{_as_yaml(value)}"'
        if wanted == ["a text"] and isinstance(value, (dict, list)):
            return "put the text in quotes; a colon with a blank behind it, or a bracket, means something else in YAML"
        if "fields" in wanted and "a valid number" in wanted:
            return "write a number, or its fields, each as `name: value`"
        if "fields" in wanted and isinstance(value, str) and problem.type != "dict_type":
            return self._as_fields(problem.path, value)
        if "fields" in wanted and problem.type == "dict_type":
            return "write each as `name: value`"
        if "fields" in wanted:
            return f"write its fields, such as {self._fields_at(problem.path)}"
        if "a list" in wanted and isinstance(value, Mapping):
            return "begin each entry with `- `"
        if "a list" in wanted and problem.path in (("rewards",), ("metrics",)):
            return self._as_fields((*problem.path, "0"), str(value))
        if "a list" in wanted:
            return f"write a list: [{short(_as_yaml(value))}]"
        return "correct the value"

    def _as_fields(self, path: tuple[str, ...], text: str) -> str:
        """The field that a text in the place of fields is the value of."""
        required = next((section.required for section in self.sections if section.path == path), [])
        required = ["prompts"] if path == ("evaluation",) else required  # what a text there is meant to be
        if path[:1] in (("method",), ("rewards",), ("metrics",)) and len(path) <= 2:
            _, kinds = self._kinds(path)
            near = difflib.get_close_matches(text, kinds, n=1, cutoff=NEAR)
            entry = f"kind: {near[0] if near else '...'}"
            known = "" if near else f"; known: {', '.join(kinds)}"
        elif len(required) == 1:
            entry, known = f"{required[0]}: {short(text)}", ""
        else:
            return f"write its fields, such as {self._fields_at(path)}"
        if path[-1].isdigit():
            return f"write `- {entry}`{known}"
        return f"write `{entry}` in it, on the command line {'.'.join(path)}.{entry.replace(': ', '=')}{known}"

    def _fields_at(self, path: tuple[str, ...]) -> str:
        names = next((section.fields for section in self.sections if section.path == path), ["kind"])
        return ", ".join(f"`{name}: ...`" for name in names[:2])


def _nearest(value: Any, context: Mapping[str, Any]) -> str:
    """What to write instead of a value that is none of a few."""
    expected = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
    if not isinstance(value, str) and _as_yaml(value) in expected:
        return f'put it in quotes: "{_as_yaml(value)}"'
    near = difflib.get_close_matches(str(value).lower(), expected, n=1, cutoff=NEAR)
    return f"did you mean {near[0]!r}?" if near else "use one of them"


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _these(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
