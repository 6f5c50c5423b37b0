"""Training on a critic: of a video's frames as a video, and by `draft train`, whose report shows every question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from draft_reward_vlm.questions import SETS
from draft_reward_vlm.tiny import tiny
from typer.testing import CliRunner

from draft_core import DifferentiableSampler, add_lora, evaluate, load_catalog
from draft_core.cli.app import app
from draft_core.plan import StepPlan
from draft_core.runs.build import build_objective, reward_config
from tests.support.families import FAMILIES

RECIPE = """
model: {pretrained: emoji, num_inference_steps: 2, lora: {rank: 2}}
prompts: [a red apple, a blue car]
method: {kind: draft-k}
rewards: [{kind: vlm, model: tiny, dtype: float32, questions: [physics, {ask: 'Is it "{prompt}"?', name: shown}]}]
train: {steps: 1, batch_size: 2}
evaluation: {prompts: [a cat, a house], images_per_prompt: 1, every: 1, tolerance: 99, scales: []}
metrics: [{kind: vqascore, model: tiny, dtype: float32}]
device: cpu
output: run
"""


def test_the_gradient_of_a_question_about_a_video_reaches_the_generator(tmp_path: Path) -> None:
    """A small Wan 2.1 and a small Qwen2.5-VL, as in recipes/wan-critic.yaml."""
    model, processor = tiny("qwen2.5-vl", seed=0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = next(family for family in FAMILIES if family.name == "Wan 2.1, video").pipe(torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=2)
    size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    sampler = DifferentiableSampler(pipe, num_inference_steps=3, **size)
    fields = {"model": str(tmp_path), "dtype": "float32", "frames": "video", "questions": ["physics"]}
    rewards = build_objective([reward_config("vlm", fields, load_catalog())], load_catalog())
    plan = StepPlan(sampler.steps, frozenset({sampler.steps - 1}))
    rollout = sampler(["a red cat"], plan=plan, generator=[torch.Generator().manual_seed(0)])
    rewards(rollout.images, rollout.prompts).total.sum().backward()
    moved = [weight.grad for weight in pipe.transformer.parameters() if weight.requires_grad]
    assert rollout.images.ndim == 5
    assert sum(float(gradient.norm()) for gradient in moved if gradient is not None) > 0
    found = evaluate(sampler, rewards, ["a red cat"], [1])
    assert list(found.components) == [f"vlm: {question.name}" for question in SETS["physics"]]


def test_the_report_of_a_run_shows_every_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "emoji" not in load_catalog().pretrained:
        pytest.skip("draft-emoji is not installed")
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(app, ["train", "recipe.yaml"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("run/evaluations.jsonl").read_text().splitlines()]
    names = [*(f"vlm: {question.name}" for question in SETS["physics"]), "vlm: shown", "vqascore: probability"]
    assert [list(row["components"]) for row in rows] == [names, names]
    of_first = [row[0] for row in rows[0]["components"].values()][:5]
    assert rows[0]["scores"]["vlm"][0] == pytest.approx(sum(of_first) / 5)
    page = Path("run/report.html").read_text()
    for name in names:
        assert f'<th scope="row">{name}</th><td>component</td>' in page
