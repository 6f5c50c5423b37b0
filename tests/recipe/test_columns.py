"""Columns of prompt lists: where they are read from, who reads them, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draft_core.errors import RecipeError
from draft_core.prompt_rows import PromptRow, row_key
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.resolve import resolve_recipe, training_prompts
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog, Entry
from tests.support.tiny import GOOD, tiny_catalog

ROWS = [{"prompt": "a cat", "image": "a.png", "wish": "red"}, {"prompt": "a dog", "image": "b.png", "wish": "blue"}]

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tiny catalog, whose `redness` reads a text, a number and an image of each row under its own names."""
    made = tiny_catalog(tmp_path_factory.mktemp("tiny"))
    entry = made.rewards["redness"]
    spec = replace(entry.spec, columns={"wish": "text"}, small_columns={"wish": ("red", "blue", "green")})
    number = replace(made.rewards["brightness"].spec, columns={"level": "number"})
    rewards = {"redness": Entry(spec, entry.distribution), "brightness": Entry(number, entry.distribution)}
    return replace(made, rewards=rewards)


@pytest.fixture
def load(catalog: Catalog, tmp_path: Path) -> Load:
    for name in ("a", "b", "c"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{name}.png")

    def loaded(prompts: Any = None, **changes: Any) -> Any:
        recipe = {**GOOD, "prompts": ROWS if prompts is None else prompts, **changes}
        model = {**GOOD["model"], **recipe.pop("columns", {})}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**recipe, "model": model}), encoding="utf-8")
        return load_recipe(path, catalog=catalog)

    return loaded


def image_column(**more: Any) -> dict[str, Any]:
    return {"columns": {"image": "image", **more}}


FILES = {
    "csv": "prompt,image,wish\na cat,a.png,red\na dog,b.png,blue\n",
    "tsv": "prompt\timage\twish\na cat\ta.png\tred\na dog\tb.png\tblue\n",
    "jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "json": json.dumps(ROWS),
    "yaml": "- {prompt: a cat, image: a.png, wish: red}\n- prompt: a dog\n  image: b.png\n  wish: blue\n",
    "yml": "prompt: [a cat, a dog]\nimage: [a.png, b.png]\nwish: [red, blue]\n",
}


@pytest.mark.parametrize("suffix", FILES)
def test_every_kind_of_file_gives_the_same_rows(suffix: str, load: Load, catalog: Catalog, tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").rename(folder / f"{name}.png")  # relative to the list, not to the recipe
    (folder / f"edits.{suffix}").write_text(FILES[suffix], encoding="utf-8")
    rows = training_prompts(load(f"lists/edits.{suffix}", columns=image_column()), catalog).prompts
    assert [str(row) for row in rows] == ["a cat", "a dog"]
    assert [row.columns for row in rows if isinstance(row, PromptRow)] == [
        {"image": "a.png", "wish": "red"},
        {"image": "b.png", "wish": "blue"},
    ]
    assert all(isinstance(row, PromptRow) and row.folder == folder for row in rows)


def test_rows_in_the_recipe_are_written_down_with_absolute_paths(load: Load, catalog: Catalog, tmp_path: Path) -> None:
    recipe = load(columns=image_column())
    assert [row["image"] for row in recipe.prompts] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    again = load_recipe(parse_yaml(dump_recipe(recipe)), catalog=catalog)
    assert (again.prompts, again.model.columns) == (recipe.prompts, {"image": "image"})


def test_prompts_without_a_reader_stay_texts(load: Load, catalog: Catalog) -> None:
    rows = [{"prompt": "a cat", "note": "x"}, {"prompt": "a dog", "note": "y"}]
    recipe = load(rows, rewards=[{"kind": "redness", "columns": {"wish": "note"}}])
    resolved = resolve_recipe(recipe, catalog, versions={}, processes=1)
    assert not resolved.notes
    plain = replace(
        catalog,
        rewards={
            **catalog.rewards,
            "redness": Entry(
                replace(catalog.rewards["redness"].spec, columns={}, small_columns={}),
                catalog.rewards["redness"].distribution,
            ),
        },
    )
    resolved = resolve_recipe(load_recipe({**GOOD, "prompts": rows}, catalog=plain), plain, versions={}, processes=1)
    assert all(type(prompt) is str for prompt in resolved.prompts.prompts)
    assert resolved.notes == ["nothing reads the column note of the prompts"]


def test_an_instruction_may_be_evaluated_on_another_image(load: Load, catalog: Catalog) -> None:
    held_out = [{"prompt": "a cat", "image": "c.png", "wish": "red"}]
    recipe = load(evaluation={"prompts": held_out}, columns=image_column())
    resolved = resolve_recipe(recipe, catalog, versions={}, processes=1)
    assert row_key(resolved.evaluation_prompts[0]) != row_key(resolved.prompts.prompts[0])
    with pytest.raises(RecipeError, match="1 of its prompts are also trained on, first 'a cat'"):
        load(evaluation={"prompts": [{**held_out[0], "image": "a.png"}]}, columns=image_column())


def test_a_changed_image_is_noticed(load: Load, catalog: Catalog, tmp_path: Path) -> None:
    recipe = load(columns=image_column())
    before = resolve_recipe(recipe, catalog, versions={}, processes=1).prompt_lists
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "b.png")
    after = resolve_recipe(recipe, catalog, versions={}, processes=1).prompt_lists
    assert {name for name in before if before[name] != after[name]} == {
        "prompts.image (files)",
        "evaluation.prompts.image (files)",
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no list": (
        {"prompts": ["a cat"], "columns": image_column()},
        "prompts: the call's image reads column 'image', and the list has none beside the prompts; add the column, or "
        "say in model.columns.image which one it is",
    ),
    "no such column": (
        {"columns": image_column(image="photo")},
        "the call's image reads column 'photo', and the list has 'image', 'wish'",
    ),
    "a reward's": (
        {"prompts": [{"prompt": "a cat"}]},
        "reward 'redness' reads column 'wish', and the list has none beside the prompts; add the column, or say in "
        "rewards.0.columns.wish which one it is",
    ),
    "a metric's": (
        {"metrics": [{"kind": "brightness"}], "evaluation": {"prompts": [{"prompt": "a fox", "wish": "red"}]}},
        "evaluation.prompts: reward 'brightness' reads column 'level', and the list has 'wish'",
    ),
    "a reward's own name": (
        {"rewards": [{"kind": "redness", "columns": {"whish": "wish"}}]},
        "rewards.0.columns: reward 'redness' reads no column 'whish'; it reads wish",
    ),
    "a missing file": (
        {"prompts": [{**ROWS[0], "image": "z.png"}], "columns": image_column()},
        r"prompts: row 1, column 'image': there is no file .*z.png \(the call's image reads it\); check the path",
    ),
    "a blank image": (
        {"prompts": [ROWS[0], {**ROWS[1], "image": ""}], "columns": image_column()},
        "row 2, column 'image': column 'image' of prompt 'a dog' is blank",
    ),
    "a blank text": (
        {"prompts": [{**ROWS[0], "wish": " "}]},
        "row 1, column 'wish': column 'wish' of prompt 'a cat' is blank",
    ),
    "no number": (
        {"rewards": [{"kind": "redness"}], "metrics": [{"kind": "brightness", "columns": {"level": "wish"}}]},
        "row 1, column 'wish': column 'wish' of prompt 'a cat' is 'red', no finite number",
    ),
    "another argument": (
        {"columns": {"columns": {"guidance_scale": "wish"}}},
        "model.columns.guidance_scale: 'guidance_scale' takes no text or image for each prompt",
    ),
    "said twice": (
        {"columns": {"columns": {"negative_prompt": "wish"}, "call": {"negative_prompt": "grey"}}},
        "model.columns.negative_prompt: model.call says it too; leave one of them out",
    ),
    "texts and rows": (
        {"prompts": ["a cat", {"prompt": "a dog", "wish": "red"}]},
        "prompts",
    ),
    "rows without a prompt": (
        {"prompts": [{"text of": "a cat", "wish": "red"}]},
        "prompts: none of 'text of', 'wish' is called prompt; call the one with the prompts `prompt`",
    ),
    "a surrogate": (
        {"rewards": [{"kind": "redness", "surrogate": {}}], "method": {"kind": "draft-k", "k": 1}},
        "rewards.0.surrogate: the surrogate of 'redness' sees images and prompts, and the reward reads column 'wish'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(case: str, load: Load) -> None:
    fields, sentence = REFUSED[case]
    with pytest.raises(RecipeError, match=sentence):
        load(**fields)


def test_a_negative_prompt_may_be_empty(load: Load, catalog: Catalog) -> None:
    rows = [{**ROWS[0], "avoid": ""}, {**ROWS[1], "avoid": "grey"}]
    recipe = load(rows, columns={"columns": {"negative_prompt": "avoid"}})
    assert [row.columns["avoid"] for row in training_prompts(recipe, catalog).prompts] == ["", "grey"]  # type: ignore[attr-defined]
