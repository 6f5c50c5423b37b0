"""The alias for two steps: the base model's folder and a LoRA, as its training program leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_emoji import FOLDER, draft_register_pretrained
from emoji_training import two_steps
from safetensors import safe_open

from draft_core import load_catalog, load_recipe, sample

SPECS = {spec.alias: spec for spec in draft_register_pretrained()}
PROMPTS = ["a fox", "an owl"]
RECIPE = Path(__file__).parents[3] / "recipes" / "two-steps.yaml"


def test_it_draws_what_the_lora_draws_on_the_base_model() -> None:
    """In two steps without guidance, which nobody has to say."""
    alias = sample("emoji-two-steps", PROMPTS, images_per_prompt=2)
    beside = sample("emoji", PROMPTS, lora=FOLDER / "two-steps", images_per_prompt=2, steps=2, guidance=1.0)
    base = sample("emoji", PROMPTS, images_per_prompt=2, steps=2, guidance=1.0)
    torch.testing.assert_close(alias, beside, atol=2e-3, rtol=0)
    assert float((alias - base).abs().mean()) > 0.01


def test_the_file_is_small_and_in_half_precision() -> None:
    files = list((FOLDER / "two-steps").iterdir())
    assert [file.name for file in files] == [two_steps.FILE]
    assert files[0].stat().st_size < 2e6
    with safe_open(files[0], "pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.skipif(not RECIPE.is_file(), reason="recipes/ of the repository is not there")
def test_the_program_trains_as_the_recipe_of_the_gallery(tmp_path: Path) -> None:
    ours = load_recipe(two_steps.recipe(tmp_path, seed=0, steps=80), catalog=load_catalog())
    shown = load_recipe(RECIPE, [f"output={tmp_path}"], catalog=load_catalog())
    for field in ("model", "method", "rewards", "train", "prompts"):
        assert getattr(ours, field) == getattr(shown, field), field
