"""`draft train` with a program as a metric or as the reward: it is asked, and its failure costs no update."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from draft_core import load_catalog
from draft_core.cli.app import app

PROGRAM = """
import pathlib, sys
for number, line in enumerate(sys.stdin):
    if pathlib.Path("broken").exists() and number % 2:
        sys.exit("no space left on my disk")
    print(pathlib.Path(line.rstrip("\\n")).stat().st_size, flush=True)
"""
RECIPE = """
model: {pretrained: emoji, num_inference_steps: 2, lora: {rank: 2}}
prompts: [a red apple, a blue car]
method: {kind: draft-k}
rewards: [{kind: emoji-clip}]
train: {steps: 2, batch_size: 2}
evaluation: {prompts: [a cat, a house], images_per_prompt: 2, every: 1, tolerance: 99, scales: []}
metrics: [{kind: command, command: [PYTHON, sizes.py], start: START}]
checkpoint: {every: 1}
device: cpu
output: run
"""


@pytest.fixture(autouse=True)
def _blank_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They and the forecast take most of the time of a short run, and no test here looks at them."""
    monkeypatch.setattr("draft_core.runs.run.require_room", lambda trainer: None)
    monkeypatch.setattr("draft_core.reporting.page.svg", lambda panel: b"<svg></svg>")
    monkeypatch.setattr("draft_core.reporting.page.save_png", lambda panels, path: path.touch())


@pytest.fixture(autouse=True)
def _the_embedded_model() -> None:
    if "draft-emoji" not in load_catalog().versions():
        pytest.skip("draft-emoji is not installed")


def train(folder: Path, start: str) -> tuple[int, str]:
    (folder / "sizes.py").write_text(PROGRAM, encoding="utf-8")
    recipe = RECIPE.replace("PYTHON", json.dumps(sys.executable)).replace("START", start)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(folder / "recipe.yaml")])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("start", ["batch", "once"])
def test_a_run_whose_program_fails_is_kept_and_goes_on(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    for folder in (temporary, tmp_path / "whole", tmp_path / "broken"):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    code, said = train(tmp_path / "whole", start)
    assert code == 0, said
    run = tmp_path / "broken" / "run"

    def breaks_after_the_first_update(*words: object) -> None:
        if len(list((run / "checkpoints").glob("000001"))):
            (tmp_path / "broken" / "broken").touch()

    with monkeypatch.context() as patch:
        patch.setattr("draft_core.cli.terminal.ProgressLines.__call__", breaks_after_the_first_update)
        code, said = train(tmp_path / "broken", start)
    assert code == 2
    assert "sizes.py: it ended with exit code 1 after 1 of " in said
    assert "its last words: no space left on my disk; try it by hand" in said
    assert not (run / "run.json").exists()
    (tmp_path / "broken" / "broken").unlink()
    code, said = train(tmp_path / "broken", start)
    assert code == 0, said
    assert "going on after update 1" in said
    whole = tmp_path / "whole" / "run"
    assert (run / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()
    trained, expected = (load_file(folder / "lora" / "pytorch_lora_weights.safetensors") for folder in (run, whole))
    torch.testing.assert_close(trained, expected, rtol=0, atol=0)
    for line in (run / "evaluations.jsonl").read_text().splitlines():
        record = json.loads(line)
        images = sorted((run / "images" / f"{record['update']:06d}").iterdir())
        assert record["scores"]["command"] == [float(image.stat().st_size) for image in images]
    assert list(temporary.glob("draft-command-*")) == []


TRAINED = """
model: {pretrained: emoji, num_inference_steps: 2, call: {eta: 1.0}, lora: {rank: 2}}
prompts: [a red apple, a blue car]
method: METHOD
rewards: [{kind: command, command: [PYTHON, sizes.py]}]
train: {steps: 2, batch_size: 4, images_per_prompt: 2, learning_rate: 1.0e-3}
evaluation: {prompts: [a cat, a house], images_per_prompt: 2, every: 2, tolerance: 99, scales: []}
device: cpu
output: OUTPUT
"""
METHODS = {
    "grpo": "{kind: grpo}",
    "raft": "{kind: importance, path_weights: false, fits: 1, levels: 1}",
}
LISTS = """
import pathlib, sys
for line in sys.stdin:
    size = pathlib.Path(line.rstrip("\\n")).stat().st_size
    with open("asked", "a") as asked:
        print(size, file=asked)
    print(-size / 1000, flush=True)
"""


@pytest.mark.parametrize("name", METHODS)
def test_a_model_is_trained_on_what_a_program_answers(name: str, tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(LISTS, encoding="utf-8")
    recipe = TRAINED.replace("PYTHON", json.dumps(sys.executable)).replace("METHOD", METHODS[name])
    (tmp_path / "recipe.yaml").write_text(recipe.replace("OUTPUT", name), encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    sizes = [int(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [row["reward_queries"] for row in rows] == [4, 4]
    before, *updates, after = (sizes[first : first + 4] for first in range(0, len(sizes), 4))
    for row, asked in zip(rows, updates, strict=True):
        assert row["scores"]["command"] == pytest.approx(-sum(asked) / 4000, rel=1e-6)
    judged = [json.loads(line) for line in (tmp_path / name / "evaluations.jsonl").read_text().splitlines()]
    for row, asked in zip(judged, (before, after), strict=True):
        assert sum(row["scores"]["command"]) == pytest.approx(-sum(asked) / 1000, rel=1e-6)
    lora = load_file(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors")
    assert any(tensor.abs().sum() > 0 for key, tensor in lora.items() if "lora_B" in key)


def test_a_method_that_needs_a_gradient_refuses_a_program_and_names_those_that_do_not(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(LISTS, encoding="utf-8")
    recipe = TRAINED.replace("PYTHON", json.dumps(sys.executable)).replace("METHOD", "{kind: draft-k}")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("OUTPUT", "run"), encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml")])
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "command" in said
    assert all(method in said for method in ("ddpo", "grpo", "importance"))
    assert not (tmp_path / "asked").exists()
