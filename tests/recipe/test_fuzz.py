"""Mutated recipes: each is understood, and written down and understood again, or refused in one sentence.

And those that are understood run to their end, or end in a sentence. For more examples than these, with another seed:

    DRAFT_FUZZ=10000 pytest tests/recipe/test_fuzz.py -k understood --hypothesis-seed=1 --hypothesis-show-statistics
    DRAFT_FUZZ=300 pytest tests/recipe/test_fuzz.py -k runs --hypothesis-seed=1 --hypothesis-show-statistics
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st

from draft_core.errors import DraftError
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.runs.run import run_recipe
from tests.support.mutations import recipes, runnable
from tests.support.runs import without_pages
from tests.support.thorough import THOROUGH

LONGEST = 3000  # characters of a sentence
WANTED = os.environ.get("DRAFT_FUZZ")  # how many examples, if not those that are always the same


def examples(usual: int) -> settings:
    return settings(
        max_examples=int(WANTED or (usual if THOROUGH else usual // 12)),
        derandomize=not WANTED,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def verdict(text: str, overrides: list[str], catalog: Catalog) -> RecipeBase | str:
    """The recipe, or the sentence that refuses it; anything else is a failure."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.chdir(folder)
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        recipe, error = _loaded(path, overrides, catalog)
        if error is not None:
            return sentence_of(error)
        assert recipe is not None
        # What is understood is understood again, and means the same.
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert dump_recipe(load_recipe(path, catalog=catalog)) == dump_recipe(recipe)
        return recipe


def sentence_of(error: DraftError) -> str:
    assert error.exit_code == 2
    assert str(error).isprintable(), error
    assert len(str(error)) < LONGEST, error
    assert str(error)[-1] in ".?", error
    return str(error)


def _loaded(path: Path, overrides: list[str], catalog: Catalog) -> tuple[RecipeBase | None, DraftError | None]:
    try:
        return load_recipe(path, overrides, catalog=catalog), None
    except DraftError as error:
        return None, error


@examples(300)
@given(mutated=recipes())
def test_a_mutated_recipe_is_understood_or_refused_in_one_sentence(
    mutated: tuple[str, list[str]], catalog: Catalog
) -> None:
    found = verdict(*mutated, catalog)
    event("refused" if isinstance(found, str) else "understood")


# Runs


def limited(recipe: RecipeBase) -> RecipeBase:
    """The same with less of what only takes time."""
    train, model, evaluation = recipe.train, recipe.model, recipe.evaluation
    steps = {"num_inference_steps": min(model.num_inference_steps, 4)} if recipe.method.kind == "draft-lv" else {}
    less: dict[str, Any] = {
        "train": _at_most(train, steps=2, batch_size=3, gradient_accumulation_steps=2),
        "model": model.model_copy(update={**steps, "lora": _at_most(model.lora, rank=64)}),
    }
    if evaluation:
        less["evaluation"] = _at_most(evaluation, count=2, images_per_prompt=2)
    return recipe.model_copy(update=less)


def _at_most(config: Any, **most: int) -> Any:
    less = {name: min(getattr(config, name) or value, value) for name, value in most.items()}  # left out: None
    return replace(config, **less) if is_dataclass(config) else config.model_copy(update=less)


def outcome(recipe: RecipeBase, catalog: Catalog) -> str:
    """What became of a run in an empty folder; anything but an end or a sentence is a failure."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.runs.run.write_report", without_pages)
        try:
            run_recipe(limited(recipe).model_copy(update={"output": inside(Path(folder), recipe.output)}), catalog)
        except DraftError as error:
            sentence_of(error)
            return "ended in a sentence"
        return "ran to its end"


def inside(folder: Path, output: Path) -> Path:
    """The output in this folder where it lies among the temporary ones, as every relative one does."""
    temporary = Path(tempfile.gettempdir()).resolve()
    return folder.joinpath(*output.relative_to(temporary).parts[1:]) if output.is_relative_to(temporary) else output


@examples(12)
@given(given_recipe=st.one_of(runnable(), recipes()))
def test_what_is_understood_runs_or_ends_in_one_sentence(
    given_recipe: tuple[str, list[str]], catalog: Catalog, known: set[str]
) -> None:
    recipe = verdict(*given_recipe, catalog)
    if isinstance(recipe, str) or (whole := dump_recipe(recipe)) in known:
        reject()
    event(outcome(recipe, catalog))
    known.add(whole)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The recipes that were run and did not fail."""
    return set()
