"""The JSON Schema of a recipe is a promise to editors: it changes only together with its golden file."""

from __future__ import annotations

import json
from pathlib import Path

from draft_core.recipe.schema import recipe_type
from draft_core.registry.catalog import Catalog, Distribution, Entry
from tests.support.tiny import REDNESS

GOLDEN = Path(__file__).parents[1] / "golden" / "recipe-schema.json"


def schema_text() -> str:
    """The schema with the core's own methods and one small reward, whatever is installed."""
    catalog = Catalog(rewards={"redness": Entry(REDNESS, Distribution("tiny", "1"))})
    return json.dumps(recipe_type(catalog).model_json_schema(), indent=2, sort_keys=True) + "\n"


def test_the_schema_is_that_of_the_golden_file() -> None:
    renew = "python -m tests.recipe.test_schema"
    assert schema_text() == GOLDEN.read_text(encoding="utf-8"), f"if the change is intended, renew the file: {renew}"


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(schema_text(), encoding="utf-8")
