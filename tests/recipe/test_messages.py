"""What is said of a recipe that cannot be understood: the place, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from pydantic import model_validator

from draft_core.errors import DraftError, RecipeError
from draft_core.plan import StepPlan
from draft_core.plugin import Config, DirectConfig, Field, MethodSpec, RewardConfig
from draft_core.recipe.load import load_recipe
from draft_core.recipe.yaml_text import dump_yaml
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.registry.methods import BUILT_IN
from tests.support.tiny import GOOD, spec


class Source(Config):
    name: str = "a"
    version: Literal["2.0", "2.1"] = "2.1"


class ChoosyConfig(RewardConfig):
    kind: Literal["choosy"] = "choosy"
    quality: int = Field(80, ge=1)
    subsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"
    source: Source = Source()
    target: int | str = 3

    @model_validator(mode="after")
    def _agrees(self) -> ChoosyConfig:
        if self.quality == 13:
            raise ValueError("`quality: 13` brings bad luck")
        if self.quality == 0:
            raise ValueError("never reached")
        return self


class EagerConfig(DirectConfig):
    """A method whose plan does not fit every chain."""

    kind: Literal["eager"] = "eager"
    k: int = 3

    def plan(self, steps: int, rng: Random) -> StepPlan:
        return StepPlan(steps=steps, grad_steps=frozenset(range(steps - self.k, steps)))


@pytest.fixture
def plugins(catalog: Catalog) -> Catalog:
    there = Distribution("choosy", "1")
    reward = Entry(spec("choosy", ChoosyConfig, "tests.support.tiny:Redness"), there)
    method = Entry(MethodSpec(kind="eager", summary="eager", config=EagerConfig), there)
    return Catalog(
        rewards={**catalog.rewards, "choosy": reward},
        pretrained=catalog.pretrained,
        methods={**catalog.methods, "eager": method},
    )


def refusal(overrides: list[str], catalog: Catalog, data: Any = GOOD) -> str:
    with pytest.raises(DraftError) as caught:
        load_recipe(data, overrides, catalog=catalog)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        # where an unknown field belongs
        ("steps=5", "unknown field 'steps'; it belongs under `train`; on the command line it is train.steps."),
        (
            "num_inference_steps=4",
            "it belongs under `model` or `evaluation`; on the command line it is model.num_inference_steps.",
        ),
        ("rank=4", "it belongs under `model.lora`; on the command line it is model.lora.rank."),
        ("model.rank=4", "it belongs under `model.lora`"),
        ("seed=4", "it belongs under `train`"),
        ("contrast=2", "it belongs under `rewards.0`; on the command line it is rewards.0.contrast."),
        ("resamples=2", "it belongs under `method`; on the command line it is method.resamples."),
        ("model.train={steps: 1}", "it belongs to the top of the recipe, not indented."),
        ("leraning_rate=1", "did you mean 'train.learning_rate'?"),
        ("train.lr=1", "unknown field 'lr'; remove it; the fields there are steps, batch_size,"),
        # what an entry is called
        (
            "method.k=3",
            "method: it does not say its kind; add `kind: draft-k`, or another with `k`: drtune, flowbp-sparse, "
            "flowbp-bridge, eager.",
        ),
        (
            "method={prefix_steps: 3}",
            "method: it does not say its kind; add `kind: short-prefix`, or another with `prefix_steps`: target.",
        ),
        ("rewards=[{quality: 3}]", "rewards.0: it does not say its kind; add `kind: choosy`."),
        ("rewards=[{redness: {contrast: 2}}]", "write `kind: redness`, and its fields beside it."),
        (
            "method=draft-k",
            "input should be fields, not 'draft-k'; write `kind: draft-k` in it, on the command line me",
        ),
        ("method=draft_k", "write `kind: draft-k` in it, on the command line method.kind=draft-k."),
        ("rewards=[redness]", "rewards.0: input should be fields, not 'redness'; write `- kind: redness`."),
        ("rewards=redness", "rewards: input should be a list, not 'redness'; write `- kind: redness`."),
        ("rewards=[5]", "rewards.0: input should be fields, not 5; write its fields, such as `kind: ...`"),
        ("model=tiny", "write `pretrained: tiny` in it, on the command line model.pretrained=tiny."),
        ("evaluation=tiny-heldout", "write `prompts: tiny-heldout` in it"),
        (
            "model.lora=8",
            "model.lora: input should be fields, not 8; write its fields, such as `rank: ...`, `alpha: ...",
        ),
        (
            "rewards={kind: redness}",
            "rewards: input should be a list, not {'kind': 'redness'}; begin each entry with `- `",
        ),
        ("train.betas=0.9", "train.betas: input should be a list, not 0.9; write a list: [0.9]."),
        ("model.call=[1]", "model.call: input should be fields, not [1]; write each as `name: value`."),
        ("model={pretraned: tiny}", "recipe: model.pretraned: unknown field 'pretraned'; did you mean 'pretrained'?"),
        ("train=", "train: input should be fields, not None; give it a value, or leave the field out."),
        ("prompts=a red apple", "a prompt itself is written in a list: [a red apple]."),
        # a number, or fields
        ("rewards=[{kind: redness, cap: .nan}]", "cap: input should be a finite number, not nan; correct the value."),
        (
            "rewards=[{kind: redness, cap: high}]",
            "cap: input should be a valid number or fields, not 'high'; write a number, or its fields, each as `name:",
        ),
        ("rewards=[{kind: redness, cap: {quantile: 2}}]", "cap.quantile: input should be less than 1, not 2;"),
        ("rewards=[{kind: redness, cap: true}]", "recipe: rewards.0.cap: input should be a number, not true; write a"),
        ("train.betas=[0.9, false]", "train.betas.1: input should be a number, not false"),
        ("evaluation={count: true}", "evaluation.count: input should be a number, not true"),
        # values as YAML 1.2 reads them
        ("train.steps=on", "train.steps: input should be a valid integer, not 'on'; correct the value."),
        ("train.steps=1:30", "train.steps: input should be a valid integer, not '1:30'"),
        ("rewards=[{kind: choosy, source: {version: 2.1}}]", 'not 2.1; put it in quotes: "2.1".'),
        ("prompts=[300, no]", 'prompts.0: input should be a text, not 300; put it in quotes: "300".'),
        ("prompts=[true]", 'prompts.0: input should be a text, not True; put it in quotes: "true".'),
        (
            "prompts=[{a cat: sitting}]",
            "prompts: none of 'a cat' is called prompt; call the one with the prompts `prompt`; a text with a colon in "
            "it stands in quotes.",
        ),
        ("prompts=3", 'prompts: input should be a text, a list or fields, not 3; put it in quotes: "3".'),
        (
            "rewards=[{kind: choosy, target: 1.5}]",
            "rewards.0.target: input should be a valid integer or a text, not 1.5",
        ),
        ("train.normalize=off", "input should be 'none', 'scale' or 'gradient', not 'off'; use one of them."),
        ("device=CPU", "device: input should be 'cpu', 'cuda' or 'mps', not 'CPU'; did you mean 'cpu'?"),
        # of plugins
        ("rewards=[{kind: choosy, quality: 13}]", "recipe: rewards.0: `quality: 13` brings bad luck."),
        (
            "method={kind: eager, k: 4}",
            "'eager' of choosy 1 makes no plan for 3 sampler steps (grad_steps steps [-1] are",
        ),
    ],
)
def test_the_sentence_says_what_to_write(override: str, sentence: str, plugins: Catalog) -> None:
    found = refusal([override], plugins)
    assert sentence in found
    assert "pydantic" not in found
    assert "dictionary" not in found


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.steps=010", "train.steps", 10),
        ("rewards=[{kind: choosy, subsampling: 4:2:0}]", "rewards.0.subsampling", "4:2:0"),
        ("model.call={eta: 1e-1}", "model.call.eta", 0.1),
        ("prompts=[no, 1:30]", "prompts.0", "no"),
        ("train.mixed_precision=no", "train.mixed_precision", "no"),
    ],
)
def test_yaml_1_2_is_what_a_recipe_is_read_as(override: str, field: str, value: Any, plugins: Catalog) -> None:
    found: Any = load_recipe(GOOD, [override], catalog=plugins)
    for part in field.split("."):
        found = found[int(part)] if part.isdigit() else found[part] if isinstance(found, dict) else getattr(found, part)
    assert (found, type(found)) == (value, type(value))


SHALLOW = """
model:
  pretrained: tiny
num_inference_steps: 3
prompts: tiny-train
rewards:
  - kind: redness
contrast: 2
"""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (SHALLOW.replace("num_inference_steps: 3\n", ""), "unknown field 'contrast'; it belongs under `rewards.0`"),
        (SHALLOW.replace("contrast: 2\n", ""), "num_inference_steps: unknown field 'num_inference_steps'; it belongs"),
        ("", "it is empty; write a recipe"),
        ("# nothing\n", "it is empty; write a recipe"),
        ("- a\n- b", "it holds a list, not fields"),
        ("5", "it holds only 5, not fields"),
        (
            b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
            "it is not text in UTF-8 (byte 1 is not); give a recipe, which is a",
        ),
        ("a: 1\n\t- b", "YAML is indented by blanks, not by tabs"),
        ('a:\n  - "quoted" words\n', "a text that begins with a quote, or holds a colon, stands in quotes as a whole"),
        ("prompts: a cat: sitting", "in line 1, column 15; a text that begins with a quote, or holds a colon, stands"),
    ],
)
def test_a_file_that_is_nearly_a_recipe(content: str | bytes, sentence: str, plugins: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = refusal([], plugins, path)
    assert found.startswith(f"{path}: ")
    assert sentence in found


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_every_method_that_asks_for_too_many_steps_names_its_field(steps: int, catalog: Catalog) -> None:
    most = steps + 10  # a scheduler may make more of them, as PNDM's first ones
    too_many: dict[str, dict[str, Any]] = {
        "draft-k": {"k": most},
        "short-prefix": {"prefix_steps": most},
        "refl": {"last": most},
        "alignprop": {"k_min": most},
        "drtune": {"k": most, "last": 2},
        "flowbp-sparse": {"k": most},
        "flowbp-bridge": {"k": most},
        "flowbp-lagrange": {"last": most},
        "steps": {"steps": [-most]},
        "target": {"prefix_steps": most},
    }
    planned = {spec.kind for spec in BUILT_IN if spec.needs_gradient}
    assert too_many.keys() == planned - {"draft", "draft-lv", "leapalign", "prefix-reuse"}
    for kind, fields in too_many.items():
        data = {**GOOD, "model": {**GOOD["model"], "num_inference_steps": steps}, "method": {"kind": kind, **fields}}
        with pytest.raises(RecipeError) as caught:
            load_recipe(data, catalog=catalog)
        assert str(caught.value).startswith("recipe: method."), kind
        assert "StepPlan" not in str(caught.value)
        assert str(steps) in str(caught.value)


def test_the_number_of_problems_counts_fields(plugins: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml({**GOOD, "prompts": 3, "modle": 1}))
    assert "prompts: input should be a text, a list or fields, not 3 (and 1 more problem)" in refusal([], plugins, path)
