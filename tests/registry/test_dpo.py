"""Recipes of dpo: where its prompts come from, and what of its pairs is refused before anything loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draft_core.errors import RecipeError
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.resolve import resolve_evaluation, resolve_prompt_list
from draft_core.recipe.yaml_text import dump_yaml, parse_yaml
from draft_core.registry.catalog import Catalog
from draft_core.registry.gradient_free import DPO, GRPO, Importance
from draft_core.registry.methods import DraftLV, PrefixReuse
from draft_core.setting import PromptFile
from tests.support.tiny import GOOD

BARE = {name: value for name, value in GOOD.items() if name != "prompts"}


def pairs(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (16, 16)).save(folder / name)
    row = {"prompt": "a cat", "winner": "1.png", "loser": "2.png"}
    lines = [json.dumps({**row, **other}) for other in rows or ({}, {"prompt": "a dog", "tie": True}, {})]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def test_the_prompts_are_those_of_the_pairs(catalog: Catalog, tmp_path: Path) -> None:
    file = pairs(tmp_path / "votes")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml({**BARE, "method": {"kind": "dpo", "pairs": "votes/pairs.jsonl"}}))
    recipe = load_recipe(path, catalog=catalog)
    assert recipe.prompts == PromptFile(file=str(file))
    found = resolve_prompt_list(recipe.prompts, catalog)
    assert found.prompts == ("a cat", "a dog", "a cat")
    assert found.columns["tie"] == ("", "true", "")
    assert resolve_evaluation(recipe, catalog)[1] == ("a cat", "a dog"), "each is evaluated once"
    again = load_recipe(parse_yaml(dump_recipe(recipe)), catalog=catalog)
    assert dump_recipe(again) == dump_recipe(recipe)
    given = {**GOOD, "prompts": str(file), "method": {"kind": "dpo", "pairs": str(file)}}
    assert load_recipe(given, catalog=catalog).prompts == str(file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"prompts": "tiny-train"},
            "recipe: prompts: method 'dpo' trains on the prompts in pairs.jsonl; leave them out",
        ),
        ({"train": {"images_per_prompt": 2}}, r"train.images_per_prompt: each pair of method.pairs has one prompt"),
        ({"train": {"normalize": "scale"}}, r"train.normalize: method 'dpo' scores no image in training, as it is set"),
        ({"evaluation": {"prompts": ["a dog"]}}, r"evaluation.prompts: 1 of its prompts are also trained on"),
        ({"method": {"kind": "dpo", "pairs": "none.jsonl"}}, r"method.pairs: there is no file .*none.jsonl"),
        ({"method": {"kind": "dpo"}}, r"prompts: the field is missing"),
        (
            {"method": {"kind": "dpo"}, "prompts": "tiny-train"},
            r"train.images_per_prompt: dpo compares the images of one prompt, and each prompt of a batch has one",
        ),
    ],
)
def test_what_contradicts_is_one_sentence(
    change: dict[str, Any], sentence: str, catalog: Catalog, tmp_path: Path
) -> None:
    method = {"kind": "dpo", "pairs": str(pairs(tmp_path / "votes"))}
    with pytest.raises(RecipeError, match=sentence):
        load_recipe({**BARE, "method": method, **change}, catalog=catalog)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"winner": "gone.png"},
            r"pairs.jsonl: pair 2: there is no file .*gone.png; correct it, or leave that pair out",
        ),
        ({"loser": ""}, r"pairs.jsonl: pair 2: an image is not named"),
        ({"grade": 2}, r"pairs.jsonl: pair 2: its grade is '2', no number from 0.5 to 1"),
    ],
)
def test_pairs_that_are_none_are_named(row: dict[str, Any], sentence: str, catalog: Catalog, tmp_path: Path) -> None:
    method = {"kind": "dpo", "pairs": str(pairs(tmp_path / "votes", {}, row))}
    with pytest.raises(RecipeError, match=sentence):
        load_recipe({**BARE, "method": method}, catalog=catalog)


def test_a_file_of_pairs_that_says_nothing_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    file = pairs(tmp_path / "votes", {"tie": True}, {"grade": 0.5})
    recipe = {**BARE, "method": {"kind": "dpo", "pairs": str(file)}}
    with pytest.raises(RecipeError, match=r"pairs.jsonl: all 2 pairs are ties, and say nothing; add pairs that prefer"):
        load_recipe(recipe, catalog=catalog)
    file.write_text("")
    with pytest.raises(RecipeError, match=r"pairs.jsonl: there are no prompts"):
        load_recipe(recipe, catalog=catalog)


def test_a_method_says_whether_it_judges_a_pass_together(tmp_path: Path) -> None:
    together = [PrefixReuse(max_drift=0.1), GRPO(), Importance(), DPO()]
    apart = [DraftLV(), PrefixReuse(), DPO(pairs=tmp_path)]
    assert [method.compares_images for method in together] == [True] * 4
    assert [method.compares_images for method in apart] == [False] * 3
    assert [method.trains_on_rewards for method in (DPO(), DPO(pairs=tmp_path), GRPO())] == [True, False, True]
