"""Mutated recipes: each is understood, and written down and understood again, or refused in one sentence."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from mutations import recipes

from draft_core.catalog import Catalog
from draft_core.errors import DraftError
from draft_core.recipe import RecipeBase, dump_recipe, load_recipe

LONGEST = 3000  # characters of a sentence


def verdict(text: str, overrides: list[str], catalog: Catalog) -> RecipeBase | str:
    """The recipe, or the sentence that refuses it; anything else is a failure."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        recipe, error = _loaded(path, overrides, catalog)
        if error is not None:
            assert error.exit_code == 2
            assert str(error).isprintable(), error
            assert len(str(error)) < LONGEST, error
            assert str(error)[-1] in ".?", error
            return str(error)
        assert recipe is not None
        # What is understood is understood again, and means the same.
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert dump_recipe(load_recipe(path, catalog=catalog)) == dump_recipe(recipe)
        return recipe


def _loaded(path: Path, overrides: list[str], catalog: Catalog) -> tuple[RecipeBase | None, DraftError | None]:
    try:
        return load_recipe(path, overrides, catalog=catalog), None
    except DraftError as error:
        return None, error


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(mutated=recipes())
def test_a_mutated_recipe_is_understood_or_refused_in_one_sentence(
    mutated: tuple[str, list[str]], catalog: Catalog
) -> None:
    verdict(*mutated, catalog)
