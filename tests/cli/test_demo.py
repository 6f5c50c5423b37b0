"""The demonstration and its counterpart on JPEG, in few updates: scores rise, and plain diffusers draws the same."""

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
from tests.support.pages import ROOT
from tests.support.runs import without_curves
from tests.support.thorough import in_full

CATALOG = load_catalog()
pytestmark = pytest.mark.skipif(
    "emoji" not in CATALOG.pretrained or "jpeg" not in CATALOG.rewards,
    reason="draft-emoji and draft-reward-jpeg are not both installed",
)
SETTINGS = ("train.steps=6", "train.batch_size=4", "evaluation.count=2", "train.learning_rate=1e-3")


def run(words: list[str], folder: Path, *, curves: bool = True) -> Path:
    words = [*words, "--set", f"output={folder}"]
    for setting in SETTINGS:
        words += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            without_curves(patch)
        result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    assert f"report: {folder / 'report.html'}" in result.output.replace("\n", "")
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(["demo"], tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def fewer_bytes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    less = ["--set", "model.num_inference_steps=8", "--set", "evaluation.scales=[]"]
    words = ["train", str(ROOT / "recipes" / "fewer-bytes.yaml"), *less]
    return run(words, tmp_path_factory.mktemp("fewer") / "run", curves=False)


def scores(folder: Path) -> dict[str, tuple[float, ...]]:
    """Kind -> its mean before and after, as the card says them."""
    rows = [row.split("|") for row in (folder / "lora" / "README.md").read_text().splitlines()]
    kinds = {"emoji-scene-contrast", "emoji-scene", "emoji-scene-judge", "jpeg", "jpeg-size"}
    return {
        row[1].strip(): tuple(float(row[place].split()[0]) for place in (3, 4))
        for row in rows
        if len(row) == 7 and row[1].strip() in kinds
    }


def test_the_trained_scores_rise_and_the_judge_is_not_trained_on(demo: Path) -> None:
    found = scores(demo)
    assert found["emoji-scene"][1] > found["emoji-scene"][0]
    record = json.loads((demo / "run.json").read_text())
    assert set(record["rewards"]) == {"emoji-scene", "emoji-scene-contrast"}
    assert {"emoji-scene-judge"} <= set(found)


@in_full
def test_the_surrogate_rises_and_the_counted_size_is_the_real_one(fewer_bytes: Path) -> None:
    found = scores(fewer_bytes)
    assert found["jpeg"][1] > found["jpeg"][0]
    for counted, real in zip(found["jpeg"], found["jpeg-size"], strict=True):
        assert counted == pytest.approx(real, rel=0.01)


def test_plain_diffusers_draws_our_after_image(demo: Path) -> None:
    from diffusers import StableDiffusionPipeline

    spec = CATALOG.pretrained["emoji-scenes"].spec
    pipe: Any = StableDiffusionPipeline.from_pretrained(spec.folder, dtype=torch.float32)
    pipe.load_lora_weights(demo / "lora")
    prompt = spec.prompts["scenes-heldout"].read_text().splitlines()[0]
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    plain = pipe(prompt, generator=torch.Generator("cpu").manual_seed(0), **call).images[0]
    expected = to_pil(plain).resize((128, 128), Image.Resampling.NEAREST)
    with Image.open(demo / "before_after.png") as grid:
        left = grid.width - 2 * 136  # the first of the two last images
        ours = grid.convert("RGB").crop((left, 31, left + 128, 159))
    difference = torch.tensor(list(ours.tobytes())).float() - torch.tensor(list(expected.tobytes())).float()
    assert difference.abs().max() <= 1, "rounding of an image that was drawn in another batch"
