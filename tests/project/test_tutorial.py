"""The tutorial runs as it stands, in few updates; the method of write-a-method.md trains; every field is described."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from draft_core import DifferentiableSampler, load_recipe
from draft_core.adapters.lora import add_lora, trainable
from draft_core.cli import app as cli
from draft_core.plan import Weighing
from draft_core.recipe.schema import RecipeBase
from tests.support.pages import ROOT, SMALL, code_blocks, require_installed, run_code, text_of
from tests.support.tiny import PROMPTS, byte_tokenizer, tiny_pipe

PAGE = text_of("docs/tutorial.md")
FIRST, _, SECOND = PAGE.partition("\n## 6. ")
SHORT = (*SMALL, "evaluation.scales=[]")
FEWER = {
    "cost": [word for setting in SHORT for word in ("--set", setting)],
    "train": [word for setting in SHORT for word in ("--set", setting)],
    "sample": ["--steps", "2", "--images", "1"],
}


def recipes(page: str) -> dict[str, str]:
    return dict(re.findall(r"<!-- recipe: (\S+) -->\n```yaml\n(.*?)```", page, flags=re.DOTALL))


@pytest.mark.usefixtures("blank_curves")
def test_the_first_part_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_installed("draft-emoji", "draft-reward-jpeg")
    monkeypatch.chdir(tmp_path)
    ((name, recipe),) = recipes(FIRST).items()
    Path(name).write_text(recipe, encoding="utf-8")
    commands = re.findall(r"^draft (.+)$", "\n".join(code_blocks(FIRST, "sh")), flags=re.MULTILINE)
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

    (snippet,) = code_blocks(FIRST, "python")
    run_code(snippet.replace("num_inference_steps=20", "num_inference_steps=2"), {})
    assert Path("tuned-apple.png").is_file()


def test_a_misspelt_field_is_one_sentence_as_the_page_says(tmp_path: Path) -> None:
    require_installed("draft-emoji", "draft-reward-jpeg")
    assert "write `qualty` for `quality`" in FIRST
    path = tmp_path / "first.yaml"
    assert "  - {kind: jpeg, quality: 80}" in recipes(FIRST)["first.yaml"]
    path.write_text(recipes(FIRST)["first.yaml"].replace("jpeg, quality", "jpeg, qualty"), encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["train", str(path)])
    assert result.exit_code == 2
    assert "quality" in result.output


def test_the_recipe_for_stable_diffusion_is_valid(tmp_path: Path) -> None:
    require_installed("draft-reward-aesthetic", "draft-reward-clipscore")
    shutil.copytree(ROOT / "recipes" / "prompts", tmp_path / "recipes" / "prompts")
    ((name, text),) = recipes(SECOND).items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / name)
    assert recipe.evaluation is not None
    assert {reward.kind for reward in recipe.rewards}.isdisjoint(metric.kind for metric in recipe.metrics)


def test_the_learner_of_the_page_trains_on_a_reward_without_gradient(tmp_path: Path) -> None:
    page = text_of("docs/write-a-method.md")
    naming, learning, other_plan, with_weights = code_blocks(page, "python")
    names: dict[str, Any] = {}
    run_code(naming, names)
    (spec,) = names["draft_register_methods"]()
    assert (spec.kind, spec.needs_gradient) == ("best-of", False)
    run_code(learning, names)
    learner = names["BestOf"](names["BestOfConfig"](keep=0.5))

    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    add_lora(pipe, rank=2)
    asked = []

    def score(images: torch.Tensor, prompts: Sequence[str]) -> Any:
        asked.append(images.requires_grad)
        return SimpleNamespace(total=images.mean(dim=(1, 2, 3)).detach())

    batch = SimpleNamespace(
        prompts=PROMPTS, generators=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))], rng=Random(0)
    )
    sampler = DifferentiableSampler(pipe, num_inference_steps=3, guidance_scale=3.0)
    (loss,) = learner.losses(batch, sampler, score)
    loss.value.backward()
    assert asked == [False]
    assert loss.report == {"kept": 0.5}
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trainable(pipe))

    run_code(other_plan, names)
    assert names["EveryOther"](offset=1).plan(5, Random(0)).grad_steps == {1, 3}
    run_code(with_weights, names)
    evenly = names["Evenly"]()
    assert isinstance(evenly, Weighing)
    plan = evenly.weighted(evenly.plan(3, Random(0)), lambda: (-0.5, -0.3, -0.1))
    assert plan.weights == pytest.approx({0: 0.6, 2: 3.0})


def fields(schema: dict[str, Any], known: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Field name in a recipe -> the section of the page that has it."""
    found: dict[str, str] = {}
    for name, field in schema["properties"].items():
        kinds = [field, *field.get("anyOf", ()), *field.get("allOf", ())]
        nested = [known[kind["$ref"].rpartition("/")[2]] for kind in kinds if "$ref" in kind]
        if nested and name not in ("method", "prompts"):
            found |= fields(nested[0], known, f"{prefix}{name}.")
        else:
            found[prefix + name] = prefix.partition(".")[0]
    return found


def test_the_reference_has_every_field_of_a_recipe() -> None:
    page = text_of("docs/reference/recipes.md")
    sections = {part.partition("\n")[0].strip("`"): part for part in page.split("\n## ")}
    schema = RecipeBase.model_json_schema()
    known = fields(schema, schema["$defs"])
    assert {"train.normalize", "model.lora.rank", "evaluation.scales", "output", "rewards"} <= known.keys()
    for name, section in known.items():
        short = name.removeprefix(f"{section}.")
        assert f"\n| `{short}` |" in sections[section or "The recipe"], name
