"""A config that is made in Python refuses what is wrong in a sentence, like a recipe, whichever class it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from draft_core import load_catalog
from draft_core.errors import DraftError, RecipeError
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.config import Config
from draft_core.registry.methods import DraftLV
from draft_core.registry.validation.sections import sections_of
from draft_core.setting import PromptFile
from draft_core.surrogates.settings import SurrogateSettings
from draft_core.training.settings import TrainSettings


def classes() -> Iterator[type]:
    """The sections of a recipe, with what is nested in them, and the configs of what is installed."""
    catalog = load_catalog()
    yield from (section.type for section in sections_of(RecipeBase, {}))
    yield from (entry.spec.config for entry in (*catalog.methods.values(), *catalog.rewards.values()))
    yield from (SurrogateSettings, PromptFile)


def refused(made: type, **fields: Any) -> bool:
    """Whether it refuses these fields in a sentence that names the class."""
    try:
        made(**fields)
    except DraftError as error:
        return str(error).startswith(f"{made.__name__}: ")
    except Exception:
        return False
    return False


def test_a_misspelt_field_is_one_sentence_in_every_class() -> None:
    found = list(dict.fromkeys(classes()))
    assert {DraftLV, TrainSettings, EvaluationSettings, RecipeBase, SurrogateSettings} <= set(found)
    assert [made.__name__ for made in found if not refused(made, nonsense=1)] == []


def test_a_number_below_its_bound_is_one_sentence_in_every_settings_class() -> None:
    for made in dict.fromkeys(classes()):
        if dataclasses.is_dataclass(made):
            numbers = [it.name for it in dataclasses.fields(made) if str(it.type).startswith("Annotated[int")]
            assert [name for name in numbers if not refused(made, **{name: -1})] == [], made


def test_pydantics_own_words_would_be_found() -> None:
    class Bare(BaseModel):
        side: int = 3

    assert not refused(Bare, side="x")
    assert refused(type("Own", (Config,), {"__annotations__": {"side": int}}), side="x")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: DraftLV(resamples=-1), "DraftLV: resamples: input should be greater than or equal to 0, not -1"),
        (lambda: DraftLV(resample=1), "DraftLV: resample: unknown field 'resample'; did you mean 'resamples'?"),
        (lambda: EvaluationSettings(count="many"), "EvaluationSettings: count: 'many' is not a whole number or None"),
        (lambda: EvaluationSettings(scales=(1.0, "x")), "scales: (1.0, 'x') is not a list of which each is a finite"),
        (lambda: PromptFile(file=3), "PromptFile: file: 3 is not a text"),  # type: ignore[arg-type]
    ],
)
def test_the_sentence_says_what_and_where(made: Any, sentence: str) -> None:
    with pytest.raises(DraftError) as caught:
        made()
    assert sentence in str(caught.value)


def test_what_is_nested_is_refused_where_it_stands() -> None:
    with pytest.raises(RecipeError, match=r"RecipeBase: model\.lora\.rank: input should be"):
        RecipeBase(model={"pretrained": "x", "lora": {"rank": 0}}, rewards=[])  # type: ignore[arg-type]
