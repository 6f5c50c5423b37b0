"""Paths of recipes: which folder a relative one begins at, and that what is not there is refused when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from draft_core.errors import RecipeError
from draft_core.plugin import Config, Field, RecipePath, RewardConfig
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.recipe.paths import with_absolute_paths, working_directory
from draft_core.recipe.yaml_text import dump_yaml
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.runs.build import reward_config
from tests.support.tiny import GOOD, spec

Weights = Annotated[str, RecipePath(("hub", "random"), of="file")]


class Inner(Config):
    weights: Weights = "hub"


class PathsConfig(RewardConfig):
    kind: Literal["paths"] = "paths"
    weights: Weights = "hub"
    model: Annotated[str, RecipePath(of="folder", absent="keep")] = "ViT-B-32"
    tag: Annotated[str, RecipePath(of="file", absent="keep")] = "openai"
    reference: Annotated[Path, RecipePath()] | None = None
    several: tuple[Weights, ...] = ()
    named: dict[str, Weights] = Field({})
    source: Inner | None = None
    word: str = "here.bin"


@pytest.fixture
def with_paths(catalog: Catalog) -> Catalog:
    entry = Entry(spec("paths", PathsConfig, "tests.support.tiny:Redness"), Distribution("paths", "1"))
    return Catalog(rewards={**catalog.rewards, "paths": entry}, pretrained=catalog.pretrained)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which is not the recipe's folder `project`; both hold a file `here.bin`."""
    for folder in ("project", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "here.bin").touch()
    (tmp_path / "project" / "only.bin").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def written(folder: Path, fields: Mapping[str, Any], **more: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml({**GOOD, "rewards": [{"kind": "paths", **fields}], **more}))
    return path


def test_every_path_begins_at_the_recipes_folder(with_paths: Catalog, elsewhere: Path) -> None:
    project = elsewhere.parent / "project"
    own: dict[str, Any] = {
        "weights": "only.bin",
        "model": "folder",
        "tag": "only.bin",
        "reference": "../project/here.bin",
        "several": ["here.bin", "random"],
        "named": {"a": "here.bin"},
        "source": {"weights": "only.bin"},
    }
    (project / "mine.txt").write_text("a boat\n")
    (project / "folder").mkdir()
    model = {**GOOD["model"], "pretrained": "model"}
    (project / "model").symlink_to(with_paths.pretrained["tiny"].spec.folder)
    path = written(project, own, prompts="mine.txt", output="../runs/x", model=model)
    recipe = load_recipe(Path("..") / "project" / path.name, catalog=with_paths)
    reward = recipe.rewards[0].model_dump()
    assert reward["weights"] == reward["tag"] == reward["source"]["weights"] == str(project / "only.bin")
    assert reward["model"] == str(project / "folder")
    assert reward["reference"] == project / "here.bin"
    assert reward["several"] == (str(project / "here.bin"), "random")
    assert reward["named"] == {"a": str(project / "here.bin")}
    assert reward["word"] == "here.bin", "what is not marked is no path"
    assert recipe.prompts == str(project / "mine.txt")
    assert recipe.model.pretrained == str(project / "model")
    assert recipe.output == elsewhere.parent / "runs" / "x"

    again = elsewhere / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert dump_recipe(load_recipe(again, catalog=with_paths)) == dump_recipe(recipe), (
        "what a run writes down is the same from every folder"
    )


def test_what_the_command_line_says_begins_at_the_working_directory(with_paths: Catalog, elsewhere: Path) -> None:
    path = written(elsewhere.parent / "project", {"weights": "here.bin"}, output="runs/x")
    (elsewhere / "mine.txt").write_text("a boat\n")
    words = ["output=out", "prompts=mine.txt", "rewards.0.weights=here.bin", "evaluation={prompts: [x]}"]
    recipe = load_recipe(path, words, catalog=with_paths)
    assert recipe.output == elsewhere / "out"
    assert recipe.prompts == str(elsewhere / "mine.txt")
    assert recipe.rewards[0].weights == str(elsewhere / "here.bin")  # type: ignore[attr-defined]
    whole = load_recipe(path, ["rewards=[{kind: paths, weights: here.bin}]"], catalog=with_paths)
    assert whole.rewards[0].weights == str(elsewhere / "here.bin")  # type: ignore[attr-defined]
    config = reward_config("paths", {"weights": "here.bin"}, with_paths)
    assert config.weights == str(elsewhere / "here.bin")  # type: ignore[attr-defined]


def test_home_is_expanded(with_paths: Catalog, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "mine.csv").write_text("prompt\na boat\n")
    (elsewhere / "model").symlink_to(with_paths.pretrained["tiny"].spec.folder)
    path = written(
        elsewhere.parent / "project",
        {"weights": "~/here.bin"},
        output="~/runs",
        prompts={"file": "~/mine.csv"},
        model={**GOOD["model"], "pretrained": "~/model"},
    )
    recipe = load_recipe(path, catalog=with_paths)
    assert recipe.output == elsewhere / "runs"
    assert recipe.rewards[0].weights == str(elsewhere / "here.bin")  # type: ignore[attr-defined]
    assert recipe.prompts.file == str(elsewhere / "mine.csv")  # type: ignore[union-attr]
    assert recipe.model.pretrained == str(elsewhere / "model")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"weights": "nope"},
            "rewards.0.weights: there is no file {project}/nope; check the path, or give an hf:// address, hub,",
        ),
        ({"source": {"weights": "nope"}}, "rewards.0.source.weights: there is no file {project}/nope"),
        ({"several": ["hub", "nope"]}, "rewards.0.several.1: there is no file {project}/nope"),
        ({"model": "./nope"}, "rewards.0.model: there is no folder {project}/nope"),
        ({"reference": "a" * 5000}, "rewards.0.reference: there is no {project}/aaa"),
        ({"weights": ".."}, "rewards.0.weights: there is no file {project.parent}"),
        ({"weights": "~nobody-here/x"}, "rewards.0.weights: ~nobody-here/x can be no path"),
    ],
)
def test_a_path_without_anything_there_is_refused(
    fields: Mapping[str, Any], sentence: str, with_paths: Catalog, elsewhere: Path
) -> None:
    project = elsewhere.parent / "project"
    path = written(project, fields)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, catalog=with_paths)
    assert str(caught.value).startswith(f"{path}: {sentence.format(project=project)}")


def test_names_and_addresses_stay_as_they_are(with_paths: Catalog, elsewhere: Path) -> None:
    (elsewhere.parent / "project" / "tiny").mkdir()
    (elsewhere.parent / "project" / "hub").touch()
    (elsewhere.parent / "project" / "openai").mkdir()
    (elsewhere.parent / "project" / "tiny-train").mkdir()
    path = written(elsewhere.parent / "project", {"weights": "hf://owner/name/file", "model": "ViT-H-14"})
    recipe = load_recipe(path, ["rewards.0.several=[hub]"], catalog=with_paths)
    assert recipe.rewards[0].weights == "hf://owner/name/file"  # type: ignore[attr-defined]
    assert recipe.rewards[0].model == "ViT-H-14"  # type: ignore[attr-defined]
    assert recipe.rewards[0].several == ("hub",)  # type: ignore[attr-defined]
    assert recipe.rewards[0].tag == "openai", "a folder is no file"  # type: ignore[attr-defined]
    assert recipe.model.pretrained == "tiny"
    assert recipe.prompts == "tiny-train"


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Settings:
        weights: Annotated[str, RecipePath()]

    (tmp_path / "blob").touch()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    Settings.__annotations__["weights"] = Annotated[str, RecipePath()]
    found = with_absolute_paths(Settings(str(tmp_path / "model.safetensors")), working_directory, where="here")
    assert found.weights == str(tmp_path / "model.safetensors")
