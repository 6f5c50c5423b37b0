"""The library's `sample`, against plain diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import draft_core
from draft_core.errors import DraftError, RecipeError
from tests.support.runs import saved_lora


def plain(catalog: Any, seed: int, lora: Path | None = None) -> torch.Tensor:
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    if lora:
        pipe.load_lora_weights(lora)
    call = catalog.pretrained["tiny"].spec.call
    image = pipe("a cat", generator=torch.Generator("cpu").manual_seed(seed), output_type="pt", **call).images[0]
    assert isinstance(image, torch.Tensor)
    return image


def test_samples_are_plain_diffusers_images_in_the_order_of_scales_prompts_and_seeds(
    catalog: Any, tmp_path: Path
) -> None:
    lora = saved_lora(tmp_path / "lora")
    images = draft_core.sample(
        "tiny", ["a red dog", "a cat"], lora=lora, scales=[0, 1], images_per_prompt=2, seed=7, catalog=catalog
    )
    assert images.shape == (2, 2, 2, 3, 16, 16)
    torch.testing.assert_close(images[0, 1, 1], plain(catalog, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(images[1, 1, 0], plain(catalog, 7, lora), atol=1e-5, rtol=0)
    assert (images[1] - images[0]).abs().max() > 1e-3


def test_a_pipeline_may_be_given_and_its_own_lora_scaled(catalog: Any) -> None:
    pipe = draft_core.load_pipeline("tiny", catalog=catalog)
    call = catalog.pretrained["tiny"].spec.call
    how = {"images_per_prompt": 1, "steps": call["num_inference_steps"], "seed": 7, "catalog": catalog}
    how |= {"guidance": call["guidance_scale"]} if "guidance_scale" in call else {}
    expected = plain(catalog, 7)
    with pytest.raises(DraftError, match="there is no LoRA to scale; give one as `lora`"):
        draft_core.sample(pipe, ["a cat"], scales=[0.5], **how)
    torch.testing.assert_close(draft_core.sample(pipe, ["a cat"], **how)[0, 0, 0], expected, atol=1e-5, rtol=0)
    draft_core.add_lora(pipe, rank=2)
    torch.testing.assert_close(
        draft_core.sample(pipe, ["a cat"], scales=[0], **how)[0, 0, 0], expected, atol=1e-5, rtol=0
    )


def test_what_cannot_be_sampled_is_refused_in_one_sentence(catalog: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown model 'tinny'; did you mean 'tiny'"):
        draft_core.sample("tinny", ["a"], catalog=catalog)
    with pytest.raises(DraftError, match="there are no prompts; give at least one"):
        draft_core.sample("tiny", [], catalog=catalog)
    with pytest.raises(DraftError, match="there is no pytorch_lora_weights"):
        draft_core.sample("tiny", ["a"], lora=tmp_path, catalog=catalog)
