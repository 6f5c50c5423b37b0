"""YAML 1.2: what a text means, what is refused and where, and that what is written is read back the same."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draft_core.recipe.yaml_text import DEEPEST, LARGEST, dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-4", 1e-4), ("1e-1", 0.1), ("4E2", 400.0), (".5e3", 500.0), ("5.", 5.0), ("-.inf", -math.inf)),
        *(("010", 10), ("0o10", 8), ("0x1F", 31), ("+1", 1), ("-0", 0), ("1_000", "1_000"), ("0b11", "0b11")),
        *(("1:30", "1:30"), ("1:30.5", "1:30.5"), ("2001-01-01", "2001-01-01")),
        *((word, word) for word in ("on", "off", "yes", "no", "Yes", "NO", "y", "n", "=", "<<", "nUll")),
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'null'", "null")),
        *(("[&a [1], *a]", [[1], [1]]), ("{<<: {a: 1}}", {"<<": {"a": 1}}), ("%YAML 1.1\n---\nno", "no")),
    ],
)
def test_the_core_schema(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb:\n  c: 1\n  'c': 2", "the field 'c' stands there twice in line 4, column 3"),
        ("a: &a\n  b: *a", "an alias holds itself in line 2, column 6"),
        (
            "a: !!python/object/apply:os.system [echo]",
            "it has the tag tag:yaml.org,2002:python/object/apply:os.system in",
        ),
        ("a: !!str 3", "it has the tag tag:yaml.org,2002:str in line 1, column 4"),
        ("? [a]\n: 1", "a field's name is a list or a mapping in line 1, column 3"),
        ("a: *b", "there is no anchor 'b' in line 1, column 4"),
        ("--- a\n--- b", "a second document begins in line 2"),
        ("9" * 5000, "has too many digits in line 1"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "it is nested deeper than 64 levels in line 1, column 65"),
        (
            "a: &a [&b [" + "[" * 40 + "]" * 40 + "]]\nb: " + "[" * 30 + "*a" + "]" * 30,
            "deeper than 64 levels in line 2",
        ),
        ("[" + "0," * LARGEST + "]", "it unfolds to more than 100000 values in line 1"),
        ("[a", "expected ',' or ']'"),
        ("\x01", "special characters are not allowed"),
        ('a: "\\ud800 cat"', "it holds \\ud800, which is no character, in line 1, column 4"),
        ('"\\udc00": a', "it holds \\udc00, which is no character, in line 1, column 1"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse_yaml(text)


WORDS = ["010", "1:30", "no", "on", "1e-4", ".5e3", "1_0", "0o7", "0x1", "~", "null", "", "true", ".inf", ".nan", "<<"]
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
LEAVES = st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none())
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(value=VALUES)
def test_what_is_written_is_read_back_the_same(value: Any) -> None:
    assert repr(parse_yaml(dump_yaml(value))) == repr(value)


@pytest.mark.parametrize("text", [*WORDS, "a\x85b", "\u2028", "\ufeff", "\x00", "x " * 300, "a  \n  b\n\n", "# x"])
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    assert parse_yaml(dump_yaml({text: [text]})) == {text: [text]}


def test_what_stands_in_two_places_is_written_twice() -> None:
    shared = [1]
    assert dump_yaml({"a": shared, "b": shared}) == "a:\n- 1\nb:\n- 1\n"
