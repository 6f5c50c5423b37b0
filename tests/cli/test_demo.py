"""The demonstration on the real plugins, in few updates: the real JPEG bytes fall, and plain diffusers agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from draft_core import load_catalog
from draft_core.cli import app as cli
from draft_core.rewards.images import to_pil

CATALOG = load_catalog()
pytestmark = pytest.mark.skipif(
    "emoji" not in CATALOG.pretrained or "jpeg" not in CATALOG.rewards,
    reason="draft-emoji and draft-reward-jpeg are not both installed",
)
SETTINGS = ("train.steps=6", "train.batch_size=4", "evaluation.count=2", "train.learning_rate=1e-3")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    words = ["demo", "--set", f"output={folder}"]
    for setting in SETTINGS:
        words += ["--set", setting]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert f"report: {folder / 'report.html'}" in result.output.replace("\n", "")
    return folder


def test_the_surrogate_rises_and_the_counted_size_is_the_real_one(demo: Path) -> None:
    lines = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    rows = [row.split("|") for row in (demo / "lora" / "README.md").read_text().splitlines() if "jpeg" in row]
    scores = {row[1].strip(): tuple(float(row[place].split()[0]) for place in (3, 4)) for row in rows if len(row) == 7}
    assert scores["jpeg"][1] > scores["jpeg"][0]
    for counted, real in zip(scores["jpeg"], scores["jpeg-size"], strict=True):
        assert counted == pytest.approx(real, rel=0.01)


def test_plain_diffusers_draws_our_after_image(demo: Path) -> None:
    from diffusers import StableDiffusionPipeline

    spec = CATALOG.pretrained["emoji"].spec
    pipe: Any = StableDiffusionPipeline.from_pretrained(spec.folder, dtype=torch.float32)
    pipe.load_lora_weights(demo / "lora")
    prompt = spec.prompts["emoji-heldout"].read_text().splitlines()[0]
    call = {"num_inference_steps": 20, "guidance_scale": 4.0, "output_type": "pt"}
    plain = pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **call).images[0]
    expected = to_pil(plain).resize((128, 128), Image.Resampling.NEAREST)
    with Image.open(demo / "before_after.png") as grid:
        left = grid.width - 2 * 136  # the first of the two last images
        ours = grid.convert("RGB").crop((left, 31, left + 128, 159))
    difference = torch.tensor(list(ours.tobytes())).float() - torch.tensor(list(expected.tobytes())).float()
    assert difference.abs().max() <= 1, "rounding of an image that was drawn in another batch"
