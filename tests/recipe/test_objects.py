"""A recipe of Python objects is the recipe of the same YAML in every field, and a typo is refused alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draft_core import (
    CheckpointSettings,
    DraftK,
    EvaluationSettings,
    FrameSettings,
    ImageFile,
    LoraConfig,
    ModelConfig,
    PromptFile,
    PromptRow,
    RegularizerSettings,
    SchedulerConfig,
    TrainSettings,
    load_recipe,
    new_recipe,
)
from draft_core.errors import DraftError, RecipeError
from draft_core.recipe.objects import RecipeFields
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from tests.support.tiny import GOOD, ClockConfig, RednessConfig

YAML = """
model:
  pretrained: tiny
  guidance_scale: 2.0
  scheduler: {name: DDIMScheduler, settings: {clip_sample: false}}
  call: {height: 16, image: {file: start.png}}
  lora: {rank: 3, targets: [to_q]}
prompts: [{prompt: a cat, n: "1"}, {prompt: a dog, n: "2"}]
method: {kind: draft-k, k: 2}
rewards: [{kind: redness, contrast: 2.0, weight: 0.5}, {kind: redness}]
metrics: [{kind: brightness}]
train: {steps: 8, batch_size: 2, betas: [0.8, 0.99], frames: {count: 2}}
regularizers: {kl: 0.1}
checkpoint: {every: 4}
evaluation: {prompts: {file: held.csv, column: text}, count: 1}
device: cpu
output: out
"""


def of_objects(catalog: Catalog) -> RecipeBase:
    return new_recipe(
        catalog,
        model=ModelConfig(
            pretrained="tiny",
            guidance_scale=2.0,
            scheduler=SchedulerConfig(name="DDIMScheduler", settings={"clip_sample": False}),
            call={"height": 16, "image": ImageFile(file=Path("start.png"))},
            lora=LoraConfig(rank=3, targets=("to_q",)),
        ),
        prompts=[PromptRow("a cat", {"n": "1"}), {"prompt": "a dog", "n": "2"}],
        method=DraftK(k=2),
        rewards=[RednessConfig(contrast=2.0, weight=0.5), {"kind": "redness"}],
        metrics=(ClockConfig(),),
        train=TrainSettings(steps=8, batch_size=2, betas=(0.8, 0.99), frames=FrameSettings(count=2)),
        regularizers=RegularizerSettings(kl=0.1),
        checkpoint=CheckpointSettings(every=4),
        evaluation=EvaluationSettings(prompts=PromptFile(file="held.csv", column="text"), count=1),
        device="cpu",
        output=Path("out"),
    )


def said(recipe: RecipeBase) -> dict[str, Any]:
    """Every field with its value, and which of them were said; two recipes that are loaded are of two classes."""
    fields = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    return {**fields, "said": recipe.model_fields_set, "of the model": recipe.model.model_fields_set}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("start.png")
    Path("held.csv").write_text("text,n\na bird,3\n", encoding="utf-8")
    Path("recipe.yaml").write_text(YAML, encoding="utf-8")
    return tmp_path


def test_objects_say_what_yaml_says_in_every_field(folder: Path, catalog: Catalog) -> None:
    of_file, made = said(load_recipe("recipe.yaml", catalog=catalog)), said(of_objects(catalog))
    assert made == of_file


def test_the_typed_fields_are_those_of_a_recipe() -> None:
    assert set(RecipeFields.__annotations__) == set(RecipeBase.model_fields)


@pytest.mark.parametrize(
    ("section", "cls", "fields"),
    [
        ("train", TrainSettings, {"stpes": 8}),
        ("model", ModelConfig, {"pretraned": "tiny"}),
        ("model", ModelConfig, {"pretrained": "tiny", "num_inference_steps": "many"}),
        ("evaluation", EvaluationSettings, {"prompts": "tiny-heldout", "evry": 2}),
        ("regularizers", RegularizerSettings, {"lora_nrom": 1.0}),
    ],
)
def test_a_typo_is_refused_in_the_words_of_the_file(
    section: str, cls: Any, fields: dict[str, Any], catalog: Catalog
) -> None:
    with pytest.raises(RecipeError) as of_file:
        load_recipe({**GOOD, section: fields}, catalog=catalog)
    with pytest.raises(RecipeError) as of_mapping:
        new_recipe(catalog, **{**GOOD, section: fields})
    assert str(of_mapping.value) == str(of_file.value)
    with pytest.raises(RecipeError) as of_object:
        cls(**fields)
    assert (of_object.value.what, of_object.value.next) == (of_file.value.what, of_file.value.next)
    with pytest.raises(RecipeError, match="unknown field 'modle'; did you mean 'model'"):
        new_recipe(catalog, **{**GOOD, "modle": {}})  # type: ignore[arg-type]


def test_a_settings_class_says_which_field_is_missing() -> None:
    with pytest.raises(RecipeError, match="PromptFile: file: the field is missing; give it"):
        PromptFile(column="text")  # type: ignore[call-arg]


def test_a_changed_recipe_is_the_file_with_overrides(folder: Path, catalog: Catalog) -> None:
    recipe = load_recipe("recipe.yaml", catalog=catalog)
    before = said(recipe)
    changed = recipe.with_(catalog, train={"steps": 3}, model={"lora": {"rank": 5}}, device=None, output="other")
    wanted = ["train.steps=3", "model.lora.rank=5", "output=other"]
    of_file = load_recipe("recipe.yaml", wanted, catalog=catalog)
    assert said(changed) == {**said(of_file), "device": None}
    assert said(recipe) == before, "the recipe itself stays"
    other = recipe.with_(catalog, method={"kind": "draft-lv"}, train=TrainSettings(steps=2), evaluation=None)
    assert other.method.model_dump() == {"kind": "draft-lv", "resamples": 2, "batched": False}, "k went with draft-k"
    assert other.train.batch_size == 2, "fields that an object leaves at their defaults stay"
    assert other.evaluation is None
    assert recipe.with_(catalog, method={"k": 1}).method == DraftK(k=1)
    with pytest.raises(RecipeError, match=r"train.stpes: unknown field 'stpes'; did you mean 'steps'\?"):
        recipe.with_(catalog, train={"stpes": 3})
    with pytest.raises(DraftError, match=r"rewards\.0"):
        recipe.with_(catalog, rewards=[{"kind": "redness", "contrast": -1}])


def test_another_model_does_not_inherit_what_an_alias_brought(catalog: Catalog) -> None:
    entry = catalog.pretrained["tiny"]
    second = replace(entry, spec=replace(entry.spec, alias="second", call={"num_inference_steps": 7, "height": 24}))
    both = replace(catalog, pretrained={**catalog.pretrained, "second": second})
    recipe = load_recipe({**GOOD, "model": {"pretrained": "tiny", "guidance_scale": 5.0}}, catalog=both)
    changed = recipe.with_(both, model={"pretrained": "second"})
    assert (changed.model.num_inference_steps, changed.model.call) == (7, {"height": 24})
    assert changed.model.guidance_scale == 5.0, "what the recipe itself said stays"
    fresh = load_recipe({**GOOD, "model": {"pretrained": "second", "guidance_scale": 5.0}}, catalog=both)
    assert said(changed) == said(fresh)
