"""Recipes of methods that need no gradient: what they may be trained on, and what of them is refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from draft_core.errors import RecipeError
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog
from tests.support.tiny import GOOD

METHODS = ("ddpo", "grpo", "importance", "dpo")
MEASURED = {**GOOD, "rewards": [{"kind": "brightness"}], "train": {"images_per_prompt": 2}}


@pytest.mark.parametrize("kind", METHODS)
def test_a_reward_without_gradient_may_be_trained_on(kind: str, catalog: Catalog) -> None:
    recipe = load_recipe({**MEASURED, "method": {"kind": kind}, "regularizers": {"kl": 0.1}}, catalog=catalog)
    again = load_recipe(parse_yaml(dump_recipe(recipe)), catalog=catalog)
    assert dump_recipe(again) == dump_recipe(recipe)
    assert again.method == recipe.method


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            {"kind": "draft-k"},
            r"take a method that needs none \(ddpo, grpo, importance, dpo\), set surrogate, or train on one of redness",
        ),
        ({"kind": "ddpo", "minibatches": 3}, r"method.minibatches: 3 minibatches do not divide a batch of 8 images"),
        ({"kind": "ddpo", "least": 40}, r"method.least: least = 40 exceeds history = 32"),
        ({"kind": "ddpo", "clip_range": 0}, r"clip_range"),
        ({"kind": "importance", "weighting": "softmax", "acceptance_rate": 0.5}, "no sample is rejected; leave it out"),
        ({"kind": "importance", "temperature": 0}, r"temperature"),
    ],
)
def test_what_a_method_cannot_use_is_one_sentence(method: dict[str, Any], sentence: str, catalog: Catalog) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe({**MEASURED, "method": method}, catalog=catalog)


def test_groups_of_one_image_are_refused_and_those_of_a_call_are_not(catalog: Catalog) -> None:
    alone = {**MEASURED, "train": {}, "method": {"kind": "grpo"}}
    with pytest.raises(RecipeError, match=r"train.images_per_prompt: grpo compares the images of one prompt"):
        load_recipe(alone, catalog=catalog)
    model = {**GOOD["model"], "call": {"num_images_per_prompt": 2}}
    assert load_recipe({**alone, "model": model}, catalog=catalog).method.kind == "grpo"


def test_images_that_do_not_divide_a_batch_are_refused(catalog: Catalog) -> None:
    train = {"batch_size": 8, "images_per_prompt": 3}
    with pytest.raises(RecipeError, match="3 images of each prompt do not divide a pass of 8 images"):
        load_recipe({**MEASURED, "train": train, "method": {"kind": "ddpo"}}, catalog=catalog)


@pytest.mark.parametrize("noise", [-0.1, 1.5])
def test_noise_is_from_none_to_that_of_an_ancestral_step(noise: float, catalog: Catalog) -> None:
    with pytest.raises(RecipeError, match=r"model.noise"):
        load_recipe({**GOOD, "model": {**GOOD["model"], "noise": noise}}, catalog=catalog)
