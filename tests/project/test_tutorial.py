"""The tutorial's first part runs as it stands, in few updates, and the recipes of its second part are valid."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draft_core import load_catalog, load_recipe
from draft_core.cli import app as cli
from draft_core.recipe.schema import RecipeBase
from draft_core.registry.config import Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FIRST, _, SECOND = PAGE.partition("\n## 6. ")
SMALL = ("train.steps=2", "train.batch_size=2", "model.num_inference_steps=3", "evaluation.count=2", "device=cpu")
FEWER = {
    "cost": [word for setting in SMALL for word in ("--set", setting)],
    "train": [word for setting in SMALL for word in ("--set", setting)],
    "sample": ["--steps", "3", "--images", "1"],
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def recipes(page: str) -> dict[str, str]:
    return dict(re.findall(r"<!-- recipe: (\S+) -->\n```yaml\n(.*?)```", page, flags=re.DOTALL))


def needs(*distributions: str) -> None:
    if missing := set(distributions) - load_catalog().versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")


def test_the_first_part_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("draft-emoji", "draft-reward-jpeg")
    monkeypatch.chdir(tmp_path)
    ((name, recipe),) = recipes(FIRST).items()
    Path(name).write_text(recipe, encoding="utf-8")
    commands = re.findall(r"^draft (.+)$", "\n".join(blocks(FIRST, "sh")), flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == (
        ["rewards", "rewards", "methods", "cost", "train", "sample", "train", "report"]
    )
    for command in commands:
        words = shlex.split(command)
        result = CliRunner().invoke(cli.app, [*words, *FEWER.get(words[0], [])])
        assert result.exit_code == 0, f"draft {command}: {result.output}"
    assert {"report.html", "before_after.png", "lora"} <= {path.name for path in Path("runs/first").iterdir()}
    assert Path("apple.png").is_file()
    assert Path("comparison.html").is_file()

    (snippet,) = blocks(FIRST, "python")
    exec(snippet.replace("num_inference_steps=20", "num_inference_steps=2"), {})
    assert Path("tuned-apple.png").is_file()


def test_a_misspelt_field_is_one_sentence_as_the_page_says(tmp_path: Path) -> None:
    needs("draft-emoji", "draft-reward-jpeg")
    assert "write `qualty` for `quality`" in FIRST
    path = tmp_path / "first.yaml"
    assert "  - {kind: jpeg, quality: 80}" in recipes(FIRST)["first.yaml"]
    path.write_text(recipes(FIRST)["first.yaml"].replace("jpeg, quality", "jpeg, qualty"), encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["train", str(path)])
    assert result.exit_code == 2
    assert "quality" in result.output


def test_the_recipe_for_stable_diffusion_is_valid(tmp_path: Path) -> None:
    needs("draft-reward-aesthetic", "draft-reward-clipscore")
    shutil.copytree(ROOT / "recipes" / "prompts", tmp_path / "recipes" / "prompts")
    ((name, text),) = recipes(SECOND).items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / name)
    assert recipe.evaluation is not None
    assert {reward.kind for reward in recipe.rewards}.isdisjoint(metric.kind for metric in recipe.metrics)


def fields(config: type[Config], prefix: str = "") -> dict[str, str]:
    """Field name in a recipe -> the section of the page that has it."""
    found: dict[str, str] = {}
    for name, field in config.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)]
        if name in ("method", "rewards", "metrics") or not nested:
            found[prefix + name] = prefix.partition(".")[0]
        else:
            found |= fields(nested[0], f"{prefix}{name}.")
    return found


def test_the_reference_has_every_field_of_a_recipe() -> None:
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0].strip("`"): part for part in page.split("\n## ")}
    known = fields(RecipeBase)
    assert {"train.normalize", "model.lora.rank", "evaluation.scales", "output"} <= known.keys()
    for name, section in known.items():
        short = name.removeprefix(f"{section}.")
        assert f"\n| `{short}` |" in sections[section or "The recipe"], name
