"""What is predicted for a card that is not here: its parts, what fits, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draft_core import load_catalog, load_recipe
from draft_core.cli import app as cli
from draft_core.cost.card import CONTEXT, FRAGMENTS, GIB, Prediction, Update, predict, published_model, usable
from draft_core.cost.forecast import Memory
from draft_core.cost.published import MODELS
from draft_core.errors import RecipeError
from draft_core.proposals.card import card_size, update_of
from tests.support.thorough import some

ROOT = Path(__file__).parents[2]
MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
ROWS = {"sdxl": ("SDXL", True), "flux": ("FLUX.1-dev", False)}  # recipe -> in the table, and whether it fits
RECIPE: dict[str, Any] = {
    "model": {"pretrained": MODEL, "num_inference_steps": 4, "call": {"height": 256, "width": 192}},
    "prompts": ["a cat", "a red dog"],
    "rewards": [{"kind": "redness"}],
}


def recipe(catalog: Any, *overrides: str) -> Any:
    return load_recipe(RECIPE, overrides, catalog=catalog)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24), ("24", 24), (" 11.5 gb", 11.5), ("80 GiB", 80), ("0", None), ("1e3", None)]
)
def test_a_card_is_told_by_its_memory(text: str, size: float | None) -> None:
    if size is not None:
        assert card_size(text, where="--card") == size
        return
    with pytest.raises(RecipeError, match=rf"^--card: '{text}' is not the memory of a card; give it in GB"):
        card_size(text, where="--card")


def test_the_update_is_that_of_the_recipe(catalog: Any) -> None:
    overrides = (
        "train.batch_size=3",
        "method={kind: draft-k, k: 2}",
        "model.lora.rank=16",
        "model.dtype=bfloat16",
        "model.decode=blocks",
        "model.guidance_scale=7",
        "metrics=[{kind: brightness, device: cpu}]",
    )
    found = update_of(recipe(catalog, *overrides))
    assert found == Update(
        model=MODELS["SD 1.5"],
        batch=3,
        grad_steps=2,
        call={"height": 256, "width": 192, "guidance_scale": 7},
        rewards={"redness": "float32"},
        rank=16,
        dtype="bfloat16",
        decode="blocks",
    )
    batched = update_of(recipe(catalog, "train.batch_size=2", "method={kind: draft-lv, resamples: 3, batched: true}"))
    assert batched.batch == 6


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("model.pretrained=org/other", "model.pretrained: the networks of org/other are not known without its files"),
        ("model.pipeline=StableDiffusionImg2ImgPipeline", "model.pipeline: it is not predicted"),
        ("train.sharding=full", "train.sharding: it is not predicted"),
        ("train.mixed_precision=bf16", "train.mixed_precision: it is not predicted"),
    ],
)
def test_what_is_not_predicted_is_refused(catalog: Any, override: str, where: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(where)) as refused:
        update_of(recipe(catalog, override))
    assert "leave --card out" in str(refused.value)


def test_a_surrogate_and_what_needs_no_gradient_are_refused_by_name(catalog: Any) -> None:
    with pytest.raises(RecipeError, match=r"^reward 'redness': surrogate: what it takes beside the method is not pre"):
        update_of(recipe(catalog, "rewards=[{kind: redness, surrogate: {}}]"))
    for kind in ("ddpo", "grpo", "importance", "dpo"):
        given = f"method={{kind: {kind}}}", "train.batch_size=4", "train.images_per_prompt=2"
        with pytest.raises(RecipeError, match=f"^method: what '{kind}' asks of the networks is not known before it"):
            update_of(recipe(catalog, *given))


def test_a_prediction_adds_up() -> None:
    memory = Memory({"unet": 5 * GIB, "reward": GIB}, lora=10, gradient=10, optimizer=20, activations=2 * GIB)
    found = Prediction(memory, start=7 * GIB)
    assert found.total == pytest.approx(8 * GIB + 40 + CONTEXT + FRAGMENTS * 2 * GIB, abs=1)
    assert found.times(3).memory.activations == 6 * GIB
    assert Prediction(memory, start=30 * GIB).total == 31 * GIB, "the whole pipeline lies there first"
    assert usable(24) / GIB < 22.4, "an A10's, of which its driver keeps a part"
    assert usable(80) / GIB < 79


@pytest.fixture(scope="module")
def small() -> Prediction:
    return predict(Update(MODELS["SD 1.5"], call={"height": 64, "width": 64}, rank=4, rewards={"other": "float32"}))


def test_weights_and_lora_are_counted_from_the_networks(small: Prediction) -> None:
    for part, network in MODELS["SD 1.5"].networks.items():
        assert small.memory.weights[part] == pytest.approx(2e6 * network.parameters, rel=1e-3)
    # 16 blocks of two attentions; the first of each reads the image, the other 768 of the text
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    assert small.memory.lora == 4 * 4 * sum(8 * width + 6 * width + 2 * 768 for width in widths)
    assert small.uncounted == ("other",)


def test_quantised_weights_are_predicted_by_their_bits(catalog: Any, small: Prediction) -> None:
    assert update_of(recipe(catalog, "model.quantization=int8")).quantization == {"unet": "int8"}
    with pytest.raises(
        RecipeError, match=r"^model.quantization: transformer is no network of this model; it has unet,"
    ):
        update_of(recipe(catalog, "model.quantization={transformer: nf4}"))
    update = Update(MODELS["SD 1.5"], call={"height": 64, "width": 64}, rank=4)
    found = predict(replace(update, quantization={"unet": "int8", "text_encoder": "nf4"}))
    # CLIP: 12 layers of four square matrices and two of four times the width are linear, the rest are embeddings
    linear = 12 * 12 * 768**2
    saved = small.memory.weights["text_encoder"] - found.memory.weights["text_encoder"]
    assert saved == pytest.approx((2 - 0.5 - 4 / 64) * linear, rel=1e-3)
    saved = small.memory.weights["unet"] - found.memory.weights["unet"]
    assert 0.1 < saved / small.memory.weights["unet"] < 0.2, "most of its weights are convolutions"
    assert found.memory.weights["vae"] == small.memory.weights["vae"]
    assert found.memory.activations > small.memory.activations + 1.5 * saved, "int8 is multiplied as bfloat16, and kept"


def test_more_pixels_take_more_and_recomputing_takes_less(small: Prediction) -> None:
    size = {"height": 128, "width": 128}
    larger = predict(Update(MODELS["SD 1.5"], call=size, rank=4))
    leaner = predict(Update(MODELS["SD 1.5"], call=size, rank=4, checkpointing="blocks", decode="blocks"))
    assert larger.memory.activations > 3 * small.memory.activations
    assert leaner.memory.activations < 0.5 * larger.memory.activations


@pytest.mark.parametrize("name", some(ROWS, "sdxl"))
def test_the_recipe_for_sdxl_passes_on_a_card_of_24_gb_and_flux_does_not(name: str) -> None:
    if missing := {"draft-reward-hpsv2", "draft-reward-pickscore"} - load_catalog().versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")
    page = (ROOT / "docs" / "measurements" / "scale.md").read_text()
    row, fits = ROWS[name]
    result = CliRunner().invoke(cli.app, ["cost", str(ROOT / "recipes" / f"{name}.yaml"), "--card", "24GB", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (cells,) = re.findall(rf"^\| {row}, 1024 x 1024 \| blocks \|(.*)\|$", page, flags=re.MULTILINE)
    assert found["total"] / GIB == pytest.approx(float(re.findall(r"\(([\d.]+)\)", cells)[0]), rel=0.02)
    assert (found["total"] <= found["room"]) is fits


def test_every_model_of_a_recipe_for_full_size_is_known() -> None:
    for name in ("sdxl", "sd3.5-medium", "flux", "wan"):
        (hub,) = re.findall(r"pretrained: (\S+)", (ROOT / "recipes" / f"{name}.yaml").read_text())
        assert published_model(hub) is not None
