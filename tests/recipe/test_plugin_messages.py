"""What is said of a recipe's values where a plugin has the say: its kinds, its validators, its plans."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any, Literal

import pytest
from pydantic import field_validator, model_validator

from draft_core.errors import PluginError, RecipeError
from draft_core.plugin import DirectConfig, MethodSpec, RewardConfig, StepPlan
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog, Distribution, Entry
from tests.support.tiny import GOOD, spec

HERE = Distribution("draft-reward-fussy", "1.0")


class FussyConfig(RewardConfig):
    """Validators that raise in every way."""

    kind: Literal["fussy"] = "fussy"
    even: int = 0
    low: int = 0
    high: int = 9
    divisor: int = 1
    word: str = ""

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it must be even, such as 4.")
        return value

    @field_validator("divisor")
    @classmethod
    def _divides(cls, value: int) -> int:
        return 6 // value

    @field_validator("word")
    @classmethod
    def _is_no_silence(cls, value: str) -> str:
        if value == "silence":
            raise AssertionError
        return value

    @model_validator(mode="after")
    def _in_order(self) -> FussyConfig:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")
        return self


FUSSY = Entry(spec("fussy", FussyConfig, "tests.support.tiny:Redness"), HERE)


def refusal(entry: dict[str, Any], catalog: Catalog, **more: Any) -> str:
    with pytest.raises((RecipeError, PluginError)) as caught:
        load_recipe({**GOOD, "rewards": [entry], **more}, catalog=catalog)
    return str(caught.value)


@pytest.fixture
def fussy(catalog: Catalog) -> Catalog:
    return replace(catalog, rewards={**catalog.rewards, "fussy": FUSSY})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"even": 3}, "recipe: rewards.0.even: it must be even, such as 4."),
        ({"low": 5, "high": 2}, "recipe: rewards.0: low = 5 is above high = 2."),
        (
            {"word": "silence"},
            "recipe: rewards.0.word: a plugin's check refuses it.",
        ),
    ],
)
def test_a_validator_speaks_in_its_authors_words(fields: dict[str, Any], sentence: str, fussy: Catalog) -> None:
    assert refusal({"kind": "fussy", **fields}, fussy) == sentence


def test_a_validator_that_fails_is_its_authors_bug(fussy: Catalog) -> None:
    text = refusal({"kind": "fussy", "divisor": 0}, fussy)
    assert text.startswith(
        "recipe: a plugin's check of its fields raised ZeroDivisionError: integer division or modulo by zero ("
    )
    assert f"{__file__}:" in text
    assert text.endswith("; tell the plugin's author.")


@pytest.mark.parametrize("alone", [True, False])
def test_an_unknown_kind_has_no_echoes(alone: bool, catalog: Catalog) -> None:
    """Neither from its fields, nor from every place that names it."""
    if alone:
        catalog = replace(catalog, rewards={"redness": catalog.rewards["redness"]})
    entry = {"kind": "mystery", "strength": 3, "weight": "heavy"}
    text = refusal(entry, catalog, metrics=[entry])
    assert text.startswith("recipe: rewards.0: unknown reward 'mystery'; known: ")
    two = refusal(entry, catalog, metrics=[{"kind": "riddle"}])
    assert two.startswith("recipe: rewards.0: unknown reward 'mystery' (and 1 more problem); known: ")


def test_a_method_that_makes_no_plan_is_its_authors_bug(catalog: Catalog) -> None:
    class Lost(DirectConfig):
        kind: Literal["lost"] = "lost"

        def plan(self, steps: int, rng: Random) -> StepPlan:
            return StepPlan(steps, frozenset([{}["step"]]))  # type: ignore[typeddict-item]

    methods = {**catalog.methods, "lost": Entry(MethodSpec(kind="lost", summary="s", config=Lost), HERE)}
    with pytest.raises(PluginError) as caught:
        load_recipe({**GOOD, "method": {"kind": "lost"}}, catalog=replace(catalog, methods=methods))
    text = str(caught.value)
    assert "'lost' of draft-reward-fussy 1.0 makes no plan for 3 sampler steps (KeyError: 'step' (" in text
    assert f"{__file__}:" in text
