"""Aliases of models: in a folder or on the hub at a revision, and how they are listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

from draft_core import load_pipeline, load_recipe
from draft_core.cli import app as cli
from draft_core.errors import PluginError
from draft_core.plugin import PretrainedSpec
from draft_core.recipe.resolve import locate_pretrained
from draft_core.registry.catalog import Catalog
from tests.support.tiny import GOOD

HUB = {"alias": "far", "summary": "on the hub", "license": "MIT", "repository": "owner/name", "revision": "0123abc"}


@pytest.fixture
def with_hub(catalog: Catalog) -> Catalog:
    entry = replace(catalog.pretrained["tiny"], spec=PretrainedSpec(**HUB, call={"guidance_scale": 2.0}))
    return replace(catalog, pretrained={**catalog.pretrained, "far": entry})


def test_an_alias_of_the_hub_is_loaded_at_its_revision(with_hub: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = DiffusionPipeline.from_pretrained
    folder = with_hub.pretrained["tiny"].spec.location

    def from_pretrained(location: str, **more: Any) -> Any:
        asked.append((location, more.pop("revision", None)))
        return load(folder, **more)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    assert locate_pretrained("far", with_hub) == "owner/name"
    load_pipeline("far", catalog=with_hub)
    load_pipeline("tiny", catalog=with_hub)
    assert asked == [("owner/name", "0123abc"), (folder, None)]
    recipe = load_recipe({**GOOD, "model": {"pretrained": "far"}}, catalog=with_hub)
    assert recipe.model.pretrained == "far", "no folder is made of it"
    assert recipe.model.guidance_scale == 2.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"repository": None, "revision": None}, "it names neither a folder nor a repository; give one of them"),
        ({"folder": Path("x")}, "it names both a folder and a repository"),
        ({"repository": "name"}, "its repository 'name' is not of the form owner/name"),
        ({"repository": None, "folder": Path("x")}, "it has a revision without a repository; leave it out"),
        ({"revision": 3}, "its revision is 3"),
    ],
)
def test_a_spec_says_once_where_its_model_is(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        PretrainedSpec(**{**HUB, **changes})


def test_models_and_their_prompt_lists_are_listed(with_hub: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_catalog", lambda: with_hub)
    said = " ".join(CliRunner().invoke(cli.app, ["models"]).output.split())
    assert "tiny random tiny-plugin 1.2, licence Apache-2.0, call num_inference_steps=3, guidance_scale=3.0" in said
    assert "prompts tiny-train, tiny-heldout" in said
    assert "far on the hub tiny-plugin 1.2, licence MIT, hub owner/name@0123abc, call guidance_scale=2.0" in said
    monkeypatch.setattr(cli, "load_catalog", Catalog)
    assert "No alias is installed; try `pip install draft-emoji`" in CliRunner().invoke(cli.app, ["models"]).output
