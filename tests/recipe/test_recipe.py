"""Recipes: what is said is understood, and what cannot be run is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from draft_core.errors import DraftError, PluginError, RecipeError
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.resolve import resolve_evaluation, resolve_prompts
from draft_core.recipe.schema import recipe_type
from draft_core.recipe.yaml_text import dump_yaml, parse_yaml
from draft_core.registry.catalog import BrokenPlugin, Catalog, Distribution, Entry
from tests.support.tiny import GOOD, REDNESS, RednessConfig


def refusal(overrides: list[str], catalog: Catalog, data: Any = GOOD) -> str:
    with pytest.raises(DraftError) as caught:
        load_recipe(data, overrides, catalog=catalog)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rewards.0.kind=rednes", "unknown reward 'rednes'; did you mean 'redness'? (known: brightness, redness)."),
        ("rewards.0.contrst=2", "recipe: rewards.0.contrst: unknown field 'contrst'; did you mean 'contrast'?"),
        ("rewards.0.contrast=-1", "rewards.0.contrast: input should be greater than 0, not -1"),
        ("rewards.0.contrast=.inf", "rewards.0.contrast: input should be a finite number"),
        ("rewards.0={contrast: 1}", "rewards.0: it does not say its kind; add `kind: redness`."),
        ("rewards=[]", "rewards: the list is empty; give at least one entry"),
        ("rewards=redness", "rewards: input should be a list, not 'redness'"),
        (
            "rewards.0.kind=brightness",
            "reward 'brightness' has no gradient, which method 'draft-lv' needs; take a method that needs none (ddpo, "
            "grpo, importance, dpo), set surrogate, or train on one of redness",
        ),
        ("train.stpes=3", "recipe: train.stpes: unknown field 'stpes'; did you mean 'steps'?"),
        ("train.steps=many", "train.steps: input should be a valid integer"),
        ("evaluation={prompts: [x], evry: 3}", "evaluation.evry: unknown field 'evry'; did you mean 'every'?"),
        ("evaluation={prompts: [x], every: 0}", "evaluation.every: input should be greater than or equal to 1, not 0"),
        ("evaluation={prompts: [x], scales: [.inf]}", "evaluation.scales.0: input should be a finite number"),
        ("model={}", "model.pretrained: the field is missing"),
        ("model.lora.rnk=3", "model.lora.rnk: unknown field 'rnk'; did you mean 'rank'?"),
        ("model.pretrained=tinny", "model.pretrained: unknown model 'tinny'; did you mean 'tiny'?"),
        ("model.pretrained=/", "model.pretrained: folder / holds no model_index.json"),
        ("modle=3", "recipe: modle: unknown field 'modle'; did you mean 'model'?"),
        ("method={kind: draft-vl}", "unknown method 'draft-vl'; did you mean 'draft-lv'?"),
        ("method={kind: draft-lv, resample: 1}", "unknown field 'resample'; did you mean 'resamples'?"),
        ("method={kind: draft-k, k: 40}", "k = 40 is larger than the number of sampler steps, 3; use k <= 3"),
        ("prompts=[]", "recipe: prompts: there are no prompts; give at least one prompt."),
        ("prompts=['  ']", "prompts: the prompt of entry 1 is empty"),
        ("prompts=tiny-trian", "unknown prompt list or file 'tiny-trian'; did you mean 'tiny-train'?"),
        ("evaluation={prompts: tiny-train}", "evaluation.prompts: 3 of its prompts are also trained on, first 'a cat'"),
        ("device=tpu", "device: input should be 'cpu', 'cuda' or 'mps', not 'tpu'"),
        ("train.steps", "--set train.steps: it is not of the form field=value"),
        ("rewards.7.kind=x", "--set rewards.7.kind=x: '7' is no index of a list of 1; use 0 to 0."),
        ("prompts.first=x", "--set prompts.first=x: there is no field 'first' in 'tiny-train'"),
        ("output=[", "--set output=[: its value is not YAML"),
        ("output=!!bool maybe", "its value is not YAML (it has the tag tag:yaml.org,2002:bool in line 1, column 1)"),
        ("output={a: *b}", "its value is not YAML (there is no anchor 'b' in line 1, column 5)"),
        ("train={steps: 1, steps: 2}", "the field 'steps' stands there twice in line 1, column 12"),
        ("prompts=&a [*a]", "an alias holds itself"),
        ("prompts=" + "[" * 90 + "]" * 90, "it is nested deeper than 64 levels"),
        ("model.call.x=" + "[" * 3000, "it is nested deeper than 64 levels in line 1, column 65"),
        ("prompts=" + "a" * 5000, "unknown prompt list or file 'aaa"),
        ("model.pretrained=" + "a" * 5000, "unknown model 'aaa"),
        ("train.seed=1000000000000000000000", "train.seed: input should be less than or equal to"),
        ("train.betas=[0.9, 1.5]", "train.betas.1: input should be less than 1, not 1.5"),
        ("model.num_inference_steps=1000000000000", "model.num_inference_steps: input should be less than or equal to"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(override: str, sentence: str, catalog: Catalog) -> None:
    assert sentence in refusal([override], catalog)


def test_a_mapping_that_no_yaml_can_say_is_refused(catalog: Catalog) -> None:
    data = {**GOOD, "model": {**GOOD["model"], "call": {"x": b"\xff"}}}
    assert "model.call: it cannot be written down again" in refusal([], catalog, data)


def test_aliases_that_unfold_without_end_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    assert "it unfolds to more than 100000 values" in refusal([], catalog, path)


def test_a_missing_field_is_named_and_further_problems_are_counted(catalog: Catalog) -> None:
    sentence = refusal(["train.steps=x"], catalog, {"model": GOOD["model"], "prompts": GOOD["prompts"]})
    assert sentence.startswith("recipe: rewards: the field is missing (and 1 more problem)")
    sentence = refusal([], catalog, {"model": GOOD["model"], "rewards": GOOD["rewards"]})
    assert sentence == "recipe: prompts: the field is missing; give a list, or a file of prompts."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [", "it is not plain YAML"),
        ("a: !!python/object/apply:os.system [echo]", "it is not plain YAML"),
        ("just words", "it holds only 'just words', not fields"),
        (b"\xff\xfe\x00", "it is not text in UTF-8 (byte 1 is not)"),
    ],
)
def test_a_file_that_is_no_recipe(content: Any, sentence: str, catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert sentence in refusal([], catalog, path)
    assert str(path) in refusal([], catalog, path)


def test_a_missing_file(catalog: Catalog, tmp_path: Path) -> None:
    assert refusal([], catalog, tmp_path / "no.yaml").endswith("no such file; check the path of the recipe.")


def test_broken_and_conflicting_plugins_are_named_beside_an_unknown_reward(catalog: Catalog) -> None:
    here, there = Distribution("draft-reward-a", "1"), Distribution("draft-reward-b", "2")
    catalog = Catalog(
        rewards=catalog.rewards,
        pretrained=catalog.pretrained,
        broken=(BrokenPlugin("b = b", there, "ImportError: no module c"),),
        conflicts={"blue": (here, there)},
    )
    assert "broken plugins: draft-reward-b 2 (ImportError: no module c)" in refusal(["rewards.0.kind=green"], catalog)
    assert "'blue' is claimed by draft-reward-a 1 and draft-reward-b 2" in refusal(["rewards.0.kind=blue"], catalog)


def test_without_any_reward_the_catalog_is_refused(catalog: Catalog) -> None:
    with pytest.raises(PluginError, match="no reward plugin is installed; install one"):
        load_recipe(GOOD, catalog=Catalog(pretrained=catalog.pretrained))


def test_with_a_single_reward_its_kind_must_still_be_said_and_right(catalog: Catalog) -> None:
    """pydantic alone would take the only member's default for a missing kind."""
    alone = Catalog(rewards={"redness": Entry(REDNESS, Distribution("a", "1"))}, pretrained=catalog.pretrained)
    assert load_recipe(GOOD, catalog=alone).rewards[0].kind == "redness"
    assert "does not say its kind" in refusal(["rewards.0={}"], alone)
    assert "unknown reward 'rednes'; did you mean 'redness'?" in refusal(["rewards.0.kind=rednes"], alone)


def test_overrides_reach_every_depth_and_numbers_may_be_written_as_in_python(catalog: Catalog) -> None:
    recipe = load_recipe(
        GOOD,
        ["train.learning_rate=4e-4", "rewards.0.contrast=2", "model.lora.rank=3", "evaluation.prompts=tiny-heldout"],
        catalog=catalog,
    )
    assert recipe.train.learning_rate == 4e-4
    assert recipe.rewards[0].contrast == 2  # type: ignore[attr-defined]
    assert recipe.model.lora.rank == 3
    assert recipe.evaluation is not None
    assert GOOD["rewards"] == [{"kind": "redness"}], "the caller's mapping is left alone"


def test_what_is_dumped_is_loaded_again_with_the_plugins_own_fields(catalog: Catalog, tmp_path: Path) -> None:
    recipe = load_recipe(GOOD, ["rewards.0.contrast=2.5", "rewards.0.weight=0.5"], catalog=catalog)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert parse_yaml(path.read_text())["rewards"] == [{"kind": "redness", "weight": 0.5, "contrast": 2.5}]
    assert load_recipe(path, catalog=catalog).model_dump() == recipe.model_dump()


def test_a_prompt_file_is_found_beside_its_recipe(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a boat\n\n  a car \n")
    (tmp_path / "recipe.yaml").write_text(dump_yaml({**GOOD, "prompts": "mine.txt"}))
    recipe = load_recipe(tmp_path / "recipe.yaml", catalog=catalog)
    assert resolve_prompts(recipe.prompts, catalog) == ["a boat", "a car"]


def test_an_empty_prompt_file_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(RecipeError, match="there are no prompts"):
        load_recipe(GOOD, [f"prompts={tmp_path / 'none.txt'}"], catalog=catalog)


def test_the_schema_names_every_installed_reward_and_describes_every_field(catalog: Catalog) -> None:
    schema = recipe_type(catalog).model_json_schema()
    text = json.dumps(schema)
    assert "RednessConfig" in text
    assert "Factor of the score." in text
    for name, definition in {"Recipe": schema, **schema["$defs"]}.items():
        for field, described in definition["properties"].items():
            refers = described.get("$ref", "").rsplit("/")[-1]
            helped = "description" in described or "description" in schema["$defs"].get(refers, {})
            assert field == "kind" or helped, f"{name}.{field} has no help"


@pytest.mark.parametrize(("k", "fits"), [(3, True), (5, True), (12, True), (13, False)])
def test_a_method_may_reach_as_many_steps_as_a_scheduler_makes_of_them(catalog: Catalog, k: int, fits: bool) -> None:
    """Heun's three are five calls of its step, PNDM's are twelve; how many they are is known once it is loaded."""
    changes = [f"method={{kind: draft-k, k: {k}}}"]
    if fits:
        assert load_recipe(GOOD, changes, catalog=catalog).model.num_inference_steps == 3
    else:
        assert "k = 13 is larger than the number of sampler steps, 3" in refusal(changes, catalog)


def test_a_reward_refuses_prompts_that_it_cannot_score(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def check(self: RednessConfig, prompts: Sequence[str]) -> None:
        asked.append(list(prompts))
        if "a cat" in prompts:
            raise DraftError("it has no dog", where="redness", next="add one")

    monkeypatch.setattr(RednessConfig, "check_prompts", check)
    load_recipe(GOOD, ["prompts=[a dog]", "evaluation.prompts=[two dogs]"], catalog=catalog)
    assert asked[:2] == [["a dog"], ["two dogs"]]
    sentence = refusal(["prompts=[a cat]", "evaluation.prompts=[two dogs]"], catalog)
    assert sentence.endswith("prompts, for rewards.0 (redness): it has no dog; add one.")
    sentence = refusal(["prompts=[a dog]", "evaluation.prompts=[a cat]"], catalog)
    assert "evaluation.prompts, for rewards.0 (redness): it has no dog" in sentence


def test_an_evaluation_without_prompts_is_the_default_one_with_these_fields(catalog: Catalog) -> None:
    listed = {**GOOD, "prompts": [f"number {number}" for number in range(20)]}
    default = resolve_evaluation(load_recipe(listed, catalog=catalog), catalog)
    settings, prompts = resolve_evaluation(
        load_recipe({**listed, "evaluation": {"images_per_prompt": 1}}, catalog=catalog), catalog
    )
    assert prompts == default[1] == tuple(listed["prompts"][:8])
    assert (settings.images_per_prompt, settings.every) == (1, default[0].every)
    more = load_recipe({**listed, "evaluation": {"count": 9}}, catalog=catalog)
    assert len(resolve_evaluation(more, catalog)[1]) == 9
    of_its_own = load_recipe({**GOOD, "evaluation": {"prompts": listed["prompts"]}}, catalog=catalog)
    assert len(resolve_evaluation(of_its_own, catalog)[1]) == 16
