"""The pages for plugin authors name every function that is there, and their config works as they say."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import draft_core
from draft_core.cli.rewards import _all_fields
from draft_core.cli.terminal import with_places
from draft_core.errors import RecipeError
from tests.project.test_surface import public_names
from tests.support.pages import ROOT, code_blocks, text_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize("module", ["draft_core.rewards", "draft_core.rewards.images", "draft_core.rewards.weights"])
def test_the_page_has_a_line_for_every_function(module: str) -> None:
    _, _, rest = text_of("docs/write-a-reward.md").partition(f"\n| from `{module}` |")
    table = rest.partition("\n\n")[0]
    assert table
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named == public_names(module)


@pytest.fixture
def page() -> types.ModuleType:
    """What the page on options defines."""
    module = types.ModuleType("options_page")
    sys.modules[module.__name__] = module  # where pydantic looks for the names of annotations
    (block,) = code_blocks(text_of("docs/how-to/options-of-a-reward.md"), "python")
    exec(compile(block, "options-of-a-reward.md", "exec", dont_inherit=True), vars(module))
    return module


def test_the_config_of_the_page_takes_its_recipe_and_refuses_the_rest(page: types.ModuleType) -> None:
    config = page.LikenessConfig(reference="cup.jpg", metric="euclidean", crop={"side": 128}, layers=[2, 8])
    assert (config.metric, config.crop.side, config.layers) == (page.Metric.euclidean, 128, (2, 8))
    for fields, sentence in (
        ({"layers": [3]}, "3 is odd; give an even number"),
        ({"layers": [4, 2]}, "list each layer once, from the first to the last"),
        ({"dtype": "bfloat16"}, "`cosine` needs float32"),
        ({"crop": {"size": 3}}, "size"),
        ({"metric": "manhattan"}, "'cosine' or 'euclidean'"),
    ):
        with pytest.raises(RecipeError, match=re.escape(sentence)):
            page.LikenessConfig(**{"reference": "cup.jpg", **fields})


def test_nested_fields_are_listed_below_theirs(page: types.ModuleType) -> None:
    schema = page.LikenessConfig.model_json_schema()
    names = [name for name, *_ in _all_fields(schema, schema["$defs"])]
    assert names[names.index("crop") :][:3] == ["crop", "crop.side", "crop.place"]
    assert "surrogate" in names
    assert not any(name.startswith("surrogate.") for name in names), "what all rewards have is said elsewhere"


def test_the_wheel_has_the_pages_that_commands_cite() -> None:
    build = tomllib.loads(text_of("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    carried = build["force-include"]
    assert all(target == f"draft_core/{page}" and (ROOT / page).is_file() for page, target in carried.items())
    for folder in ("cli", "proposals", "publishing"):
        for file in (ROOT / "draft_core" / folder).rglob("*.py"):
            cited = set(re.findall(r"docs/[\w/-]+\.md", file.read_text(encoding="utf-8")))
            assert cited <= carried.keys(), file


def test_a_page_is_named_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_places("see docs/write-a-reward.md.") == f"see {ROOT / 'docs' / 'write-a-reward.md'}."
    assert with_places("see docs/nowhere.md") == "see docs/nowhere.md"
    carried = tmp_path / "draft_core" / "docs" / "write-a-reward.md"
    carried.parent.mkdir(parents=True)
    carried.touch()
    monkeypatch.setattr(draft_core, "__file__", str(tmp_path / "draft_core" / "__init__.py"))
    assert with_places("docs/write-a-reward.md") == str(carried)
