"""A config that is made in Python refuses what is wrong in a sentence, like a recipe, whichever class it is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from draft_core import load_catalog
from draft_core.errors import DraftError, RecipeError
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.schema import LoraConfig, RecipeBase
from draft_core.registry.config import Config
from draft_core.registry.methods import DraftLV
from draft_core.registry.validation.fields import typed_fields
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


def numeric(made: type) -> list[str]:
    """The fields of a class that are numbers, or lists of numbers, and can be no boolean."""
    found = typed_fields(made).items()
    names = {name: str(annotation) for name, (annotation, _) in found if annotation is not bool}
    return [
        name
        for name, text in names.items()
        if (text.startswith("<class") and text[8:-2] in ("int", "float")) or re.match(r"(int|float) \|", text)
    ]


def test_a_boolean_is_no_number_in_any_class(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {made: numeric(made) for made in dict.fromkeys(classes())}
    assert sum(map(len, found.values())) > 100
    for made, names in found.items():
        assert [name for name in names if not refused(made, **{name: True})] == [], made
    with pytest.raises(RecipeError, match=r"LoraConfig: rank: input should be a number, not true; write a number"):
        LoraConfig(rank=True)
    monkeypatch.setattr("draft_core.registry.config.refuse_booleans", lambda *args, **more: None)
    assert LoraConfig(rank=True).rank == 1, "what pydantic makes of it"


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
