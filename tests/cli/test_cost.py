"""`draft cost` on the embedded model: what it prints, and that a mistake is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draft_core.cli import cost as cli_cost
from draft_core.cli.app import app
from draft_core.cost import evaluation as cost_evaluation
from draft_core.cost import forecast as cost_forecast
from draft_core.recipe.yaml_text import dump_yaml
from tests.support.tiny import GOOD, tiny_catalog

EVALUATED = ("--set", "evaluation={prompts: tiny-heldout, images_per_prompt: 3, num_inference_steps: 5}")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    catalog = tiny_catalog(tmp_path)
    monkeypatch.setattr(cli_cost, "load_catalog", lambda: catalog)
    given: dict[str, Any] = {**GOOD, "train": {"batch_size": 2, "steps": 7}, "device": "cpu"}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(given))
    return tmp_path / "recipe.yaml"


def test_json_carries_calls_seconds_memory_and_savings(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["cost", str(recipe), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["calls"] == {"plain": 2, "with_grad": 3, "recomputed": 0, "decoded": 6, "scored": 6, "encoded": 0}
    assert found["steps"] == 7
    assert found["seconds"]["total"] > 0
    evaluation = found["evaluation"]
    assert (evaluation["images"], evaluation["calls"], evaluation["evaluations"]) == (6, 3, 2), "3 prompts, 2 images"
    assert found["memory"]["total"] > sum(found["memory"]["weights"].values())
    assert all(total < found["memory"]["total"] for total in found["savings"].values())


@pytest.mark.usefixtures("few_savings")
def test_tables_name_the_parts_and_what_would_lower_them(recipe: Path) -> None:
    small = ("--set", "method={kind: draft}", "--set", "train.batch_size=1", "--set", "model.num_inference_steps=2")
    result = CliRunner().invoke(app, ["cost", str(recipe), *small, *EVALUATED])
    assert result.exit_code == 0, result.output
    for words in ("denoiser with gradient", "weights: unet", "total", "model.gradient_checkpointing: true"):
        assert words in result.stdout
    assert re.search(r"2 evaluations of 6 images, 5 denoiser calls each: about \d+\.\d minutes beside\.", result.stdout)
    assert not (recipe.parent / "runs").exists()


def once(ask: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but that a second question has the answer of the first."""
    answers: list[Any] = []

    def answered(*given: Any, **more: Any) -> Any:
        if not answers:
            answers.append(ask(*given, **more))
        return answers[0]

    return answered


@pytest.mark.usefixtures("few_savings")
def test_the_prediction_is_compared_with_the_machine(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in ((cost_forecast, ("forecast", "savings")), (cost_evaluation, ("evaluation_cost",))):
        for name in names:
            monkeypatch.setattr(module, name, once(getattr(module, name)))
    words = ["cost", str(recipe), "--json"]
    plain = json.loads(CliRunner().invoke(app, words).stdout)
    total, lora = plain["memory"]["total"], plain["memory"]["lora"]
    loaded = sum(plain["memory"]["weights"].values()) + lora
    half = (total - loaded) * 3 // 4
    for free in (None, half, total):
        monkeypatch.setattr("draft_core.cost.room.free_memory", lambda device, free=free: free)
        said = CliRunner().invoke(app, words[:2]).stdout
        assert ("It does not fit." in said) == (free == half)
        assert ("what cpu has for it now" in said) == (free is not None)
        saving = next(line for line in said.splitlines() if "train.batch_size: 1," in line)
        assert saving.endswith("(fits)") == (free == half)
        if free == half:
            assert json.loads(CliRunner().invoke(app, words).stdout)["room"] == free + loaded


def test_a_mistake_in_the_recipe_is_one_sentence(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["cost", str(recipe), "--set", "model.decode=sliecd"])
    assert result.exit_code == 2
    assert "model.decode" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("few_savings")
def test_a_denoiser_is_shared_out_over_the_processes_of_the_recipe(recipe: Path) -> None:
    def weights(*more: str) -> Any:
        words = [part for override in more for part in ("--set", override)]
        return json.loads(CliRunner().invoke(app, ["cost", str(recipe), *words, "--json"]).stdout)["memory"]["weights"]

    whole, shared = weights(), weights("train.sharding=hybrid", "processes=8")
    assert {name for name in whole if whole[name] != shared[name]} == {"unet"}
    alone = CliRunner().invoke(app, ["cost", str(recipe), "--set", "train.sharding=full"])
    assert "train.sharding: there is one process, so nothing to share out; set processes" in alone.stderr


def test_one_of_a_kind_is_not_said_in_the_plural() -> None:
    assert [cli_cost._counted(number, "call") for number in (0, 1, 2)] == ["0 calls", "1 call", "2 calls"]
