"""`draft train` on the classifier's first choice, which has no gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from draft_core import load_catalog
from draft_core.cli.app import app

RECIPE = """
model: {pretrained: emoji, num_inference_steps: 2, lora: {rank: 2}}
prompts: [a red apple, a blue car]
method: METHOD
rewards: [{kind: adversarial-top1, target: 0, source: SOURCE}]
train: {steps: 2, batch_size: 4, images_per_prompt: 2, learning_rate: 1.0e-3}
device: cpu
output: run
"""
SOURCE = {"library": "timm", "name": "test_vit", "weights": "random", "num_classes": 10}


@pytest.fixture(autouse=True)
def _the_embedded_model() -> None:
    if "draft-emoji" not in load_catalog().versions():
        pytest.skip("draft-emoji is not installed")


def train(folder: Path, method: str) -> tuple[int, str]:
    recipe = RECIPE.replace("METHOD", method).replace("SOURCE", json.dumps(SOURCE))
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml")])
    return result.exit_code, " ".join(result.output.split())


def test_a_model_is_trained_on_shares_by_a_method_without_gradient(tmp_path: Path) -> None:
    code, said = train(tmp_path, "{kind: importance, path_weights: false, fits: 1, levels: 1}")
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_queries"] for row in rows] == [4, 4]
    assert all(row["scores"]["adversarial-top1"] in (0, 0.25, 0.5, 0.75, 1) for row in rows)
    lora = load_file(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    assert any(tensor.abs().sum() > 0 for key, tensor in lora.items() if "lora_B" in key)


def test_a_method_that_needs_a_gradient_refuses_it(tmp_path: Path) -> None:
    code, said = train(tmp_path, "{kind: draft-k}")
    assert code == 2
    assert "adversarial-top1" in said
    assert all(method in said for method in ("ddpo", "grpo", "importance"))
