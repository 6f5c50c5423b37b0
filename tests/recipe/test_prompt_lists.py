"""Prompt files as people have them: which prompts and columns they hold, and what is refused by name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draft_core.errors import DraftError, RecipeError, list_of_prompts
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.prompt_lists import PromptList, read_prompt_file
from draft_core.recipe.resolve import given_prompts, resolve_prompts, resolve_recipe
from draft_core.recipe.yaml_text import dump_yaml
from draft_core.registry.catalog import Catalog
from draft_core.setting import PromptFile
from tests.support.tiny import GOOD

T = TypeVar("T")

# As the published lists are written: PartiPrompts' TSV, DrawBench's CSV, HPDv2's JSON, GenEval's JSON lines.
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tone\n"
    "\"a sign\" that says 'Diffusion'\tArtifacts\tWriting\t\n"
)
DRAWBENCH = 'Prompts,Category\r\nA red colored car.,Colors\r\n"A cube, a sphere, and a cone.",Counting\r\n'
HPD = json.dumps(["A cat's face", "a city, at night"])
GENEVAL = '{"tag": "single_object", "include": [{"class": "bench"}], "prompt": "a photo of a bench"}\n{"prompt": "b"}\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "prompts", "columns"),
    [
        ("a.txt", b"\xef\xbb\xbfa cat\r\n\n  a dog \n", ["a cat", "a dog"], {}),
        ("a.txt", "a\u2028b\nc\x0bd\x85e\n", ["a\u2028b", "c\x0bd\x85e"], {}),
        ("a.TXT", "a cat\nb".encode("utf-16"), ["a cat", "b"], {}),
        (
            "parti.tsv",
            PARTI,
            ["bond", "\"a sign\" that says 'Diffusion'"],
            {"Category": ("Abstract", "Artifacts"), "Challenge": ("Basic", "Writing"), "Note": ("one", "")},
        ),
        ("quoted.tsv", 'prompt\tn\n"a ""big"" cat\non two lines"\t1\n', ['a "big" cat\non two lines'], {"n": ("1",)}),
        (
            "drawbench.csv",
            DRAWBENCH,
            ["A red colored car.", "A cube, a sphere, and a cone."],
            {"Category": ("Colors", "Counting")},
        ),
        ("excel.csv", b"\xef\xbb\xbfcaption\r\na cat\r\n\r\n", ["a cat"], {}),
        ("hpd.json", HPD, ["A cat's face", "a city, at night"], {}),
        ("objects.json", '[{"prompt": "a", "n": 1}, {"prompt": "b"}]', ["a", "b"], {"n": ("1", "")}),
        ("columns.json", '{"prompt": ["a", "b"], "tag": ["x", ["y"]]}', ["a", "b"], {"tag": ("x", '["y"]')}),
        (
            "geneval.jsonl",
            GENEVAL,
            ["a photo of a bench", "b"],
            {"tag": ("single_object", ""), "include": ('[{"class": "bench"}]', "")},
        ),
        ("texts.jsonl", '"a"\r\n\r\n"b\u2028"\r\n', ["a", "b"], {}),
    ],
)
def test_a_file_is_read_by_its_suffix(
    name: str, content: str | bytes, prompts: list[str], columns: dict[str, Any], tmp_path: Path
) -> None:
    assert read_prompt_file(write(tmp_path, name, content), where="prompts") == PromptList(tuple(prompts), columns)


@pytest.mark.parametrize(
    ("name", "content", "column", "sentence"),
    [
        (
            "a.md",
            "a",
            None,
            "prompts are not read from .md; give a file of .txt, .csv, .tsv, .json, .jsonl, .yaml, .yml.",
        ),
        ("prompts", "a", None, "prompts are not read from files without a suffix"),
        ("a.txt", b"a\nb\xff\n", None, "line 2 is not UTF-8"),
        ("a.txt", b"a\nb\0\n", None, "line 2 holds a zero byte"),
        ("a.txt", "a", "prompt", "its prompts stand in no column 'prompt'; leave the column out"),
        ("a.csv", "a red apple\na dog\n", None, "none of 'a red apple' is called prompt; say which column holds them"),
        ("a.csv", "Prompt;Category\na;b\n", None, "none of 'Prompt;Category' is called prompt"),
        ("a.csv", "prompt,caption\na,b\n", None, "'prompt' and 'caption' may both hold prompts; say which"),
        ("a.csv", "prompt,caption\na,b\n", "captn", "it has no column 'captn'; did you mean 'caption'?"),
        ("a.csv", "prompt,c\na,b\nc\n", None, "line 3 holds 1 columns, the first line 2"),
        ("a.csv", 'prompt,c\n"a,b\n', None, "line 2 is torn"),
        ("a.csv", "prompt,c,c\na,b,c\n", None, "two of its columns are called 'c'"),
        ("a.csv", "prompt,c\n ,b\n", None, "the prompt of line 2 is empty"),
        ("a.json", '["a fox", " "]', None, "the prompt of entry 2 is empty"),
        ("a.json", "[1, 2]", None, "entry 1 is 1; write texts alone, or objects alone"),
        ("a.json", '["a", {"prompt": "b"}]', None, "entry 1 is 'a'; write texts alone, or objects alone"),
        ("a.json", '[{"prompt": "a"}, {"prompt": null}]', None, "the prompt of entry 2 is missing"),
        ("a.json", '[{"prompt": 3}]', None, "the prompt of entry 1 is 3, not a text"),
        ("a.json", '{"1": {"prompt": "a"}}', None, "it holds neither a list nor an object of lists"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', None, "with an object in each line it is a .jsonl file"),
        ("a.json", "[" * 100_000, None, "it is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{', None, "line 2 is no JSON"),
        ("a.jsonl", '{"prompt": "a"}\n{"n": 1, "prompt": "b", "prompt": "c"}', None, "'prompt' stands there twice"),
        ("a.json", '[{"prompt": "a", "n": 1, "n": 2}]', None, "the field 'n' stands there twice"),
    ],
)
def test_what_does_not_say_its_prompts_is_refused(
    name: str, content: str | bytes, column: str | None, sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(RecipeError) as caught:
        read_prompt_file(path, column, where="prompts")
    assert str(caught.value).startswith(f"prompts: {path}: ")
    assert sentence in str(caught.value)


def test_an_option_that_does_not_say_its_prompts_is_not_told_to_be_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt,caption\na,b\n")
    with pytest.raises(
        RecipeError, match="may both hold prompts; call the one with the prompts `prompt`, and no other"
    ):
        read_prompt_file(path, where="--prompts a.csv")


def test_a_recipe_chooses_the_column_and_the_others_are_kept(catalog: Catalog, tmp_path: Path) -> None:
    write(tmp_path, "two.csv", "prompt,caption\na,b\nc,d\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml({**GOOD, "prompts": {"file": "two.csv", "column": "caption"}}))
    loaded = load_recipe(recipe, catalog=catalog)
    assert loaded.prompts == PromptFile(file=str(tmp_path / "two.csv"), column="caption")
    resolved = resolve_recipe(loaded, catalog, versions={}, processes=1)
    assert resolved.prompts == PromptList(("b", "d"), {"prompt": ("a", "c")})
    (tmp_path / "again.yaml").write_text(dump_recipe(loaded))
    assert dump_recipe(load_recipe(tmp_path / "again.yaml", catalog=catalog)) == dump_recipe(loaded)


def test_an_empty_list_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    for name, content in (("a.txt", "\n \n"), ("a.csv", "prompt,n\n"), ("a.json", "[]"), ("a.jsonl", "")):
        with pytest.raises(RecipeError, match=r"^prompts: there are no prompts"):
            resolve_prompts(PromptFile(file=str(write(tmp_path, name, content))), catalog)


def test_half_a_character_is_refused_wherever_a_prompt_comes_from(catalog: Catalog, tmp_path: Path) -> None:
    """Nothing can encode one: the tokenizer's own error names neither the prompt nor its place."""
    whole = write(tmp_path, "whole.json", '["\\ud83e\\udd8a"]')  # both halves are a fox
    assert resolve_prompts(str(whole), catalog) == ["\U0001f98a"]
    sentence = r"prompts: prompt 2 holds \\ud83e, which is no character; write the character itself, in UTF-8"
    torn = write(tmp_path, "torn.json", '["a", "b \\ud83e"]')
    with pytest.raises(RecipeError, match=sentence):
        resolve_prompts(str(torn), catalog)
    of_columns = write(tmp_path, "torn.jsonl", '{"prompt": "a", "colour": "\\ud83e"}')
    with pytest.raises(RecipeError, match=r"colour 1 holds \\ud83e"):
        resolve_prompts(str(of_columns), catalog)
    latin = os.fsdecode(b"gr\xf6n") if os.name == "posix" else "gr\udcf6n"  # a byte of a command line
    with pytest.raises(RecipeError, match=r"--prompts: prompt 1 holds \\udcf6"):
        given_prompts(latin, catalog, where="--prompts")
    with pytest.raises(DraftError, match=r"^Trainer: a prompt holds \\ud83e"):
        list_of_prompts(["a", "\ud83e"], where="Trainer")


def outcome(work: Callable[[], T]) -> T | str:
    """What comes out, or the sentence that refuses it."""
    try:
        return work()
    except RecipeError as error:
        return str(error)


SUFFIX = st.sampled_from([".txt", ".csv", ".tsv", ".json", ".jsonl"])
GOOD_TEXTS = st.sampled_from([PARTI, DRAWBENCH, HPD, GENEVAL, '{"prompt": ["a"], "n": [1]}', "a\nb\n"])


@st.composite
def torn(draw: Any) -> bytes:
    """A good file that something was put into or cut out of, or anything at all."""
    content = draw(GOOD_TEXTS).encode()
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    return draw(st.one_of(st.just(content[:start] + draw(st.binary(max_size=3)) + content[end:]), st.binary()))


@settings(max_examples=int(os.environ.get("DRAFT_FUZZ", 300)), derandomize=True, deadline=None, database=None)
@given(content=torn(), suffix=SUFFIX, column=st.sampled_from([None, "Prompt", "n"]))
def test_any_file_gives_prompts_or_one_sentence(content: bytes, suffix: str, column: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), f"a{suffix}", content)
        found = outcome(lambda: read_prompt_file(path, column, where="prompts"))
    if isinstance(found, str):
        assert found.startswith(f"prompts: {path}: ")
        return
    assert all(prompt and prompt == prompt.strip() for prompt in found.prompts)
    assert all(len(values) == len(found.prompts) for values in found.columns.values())


# On the command line


@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(word=st.text(max_size=400))
def test_any_word_is_a_prompt_or_one_sentence(word: str, catalog: Catalog) -> None:
    found = outcome(lambda: given_prompts(word, catalog, where="--prompts"))
    assert found == [word.strip()] or isinstance(found, str)


@pytest.mark.parametrize("prompt", ["a red apple", "x" * 300, "火" * 200, "and/or", "tiny", "a cat.", "\0"])
def test_a_word_that_names_no_file_and_no_list_is_a_prompt(prompt: str, catalog: Catalog) -> None:
    assert given_prompts(prompt, catalog, where="--prompts") == [prompt]


def test_lists_and_files_are_read(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "some.csv", "prompt,n\na,1\nb,2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_prompts("tiny-heldout", catalog, where="--prompts") == ["a bird", "a fish"]
    assert given_prompts("some.csv", catalog, where="--prompts") == ["a", "b"]
    assert given_prompts("~/some.csv", catalog, where="--prompts") == ["a", "b"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("prompts_typo.txt", "there is no file 'prompts_typo.txt'"),
        ("my prompts.jsonl", "there is no file 'my prompts.jsonl'"),
        ("./nope", "there is no file './nope'"),
        ("~nobody-here/x", "there is no file '~nobody-here/x'"),
        ("tiny-trian", "there is no list 'tiny-trian'; did you mean 'tiny-train'?"),
        ("tiny_heldout", "there is no list 'tiny_heldout'; did you mean 'tiny-heldout'?"),
    ],
)
def test_what_is_nearly_a_file_or_a_list_is_not_drawn(word: str, sentence: str, catalog: Catalog) -> None:
    with pytest.raises(RecipeError) as caught:
        given_prompts(word, catalog, where="--prompts")
    assert str(caught.value).startswith(f"--prompts: {sentence}")
