"""The recipes for full-size models fit the classes they name, and train small models of their families."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from peft.tuners.lora import LoraLayer

from draft_core import DifferentiableSampler, Objective, Trainer, load_catalog, load_recipe
from draft_core.adapters.lora import ATTENTION, adapters_off, add_lora, trainable
from draft_core.cost.meta_device import build_network
from draft_core.cost.published import MODELS
from draft_core.learners.direct import DirectLearner
from draft_core.recipe.resolve import resolve_prompts
from draft_core.sampling.pipelines import find_denoiser
from draft_core.sampling.prompt_cache import remember_prompts
from tests.support.families import FAMILIES
from tests.support.thorough import some
from tests.support.tiny import Redness, RednessConfig

ROOT = Path(__file__).parents[2]
SMALLER = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}

# Recipe -> the small pipeline of its family, and how many attention projections the published denoiser has.
FULL_SIZE = {
    "sd15": ("Stable Diffusion 1.x", 16 * 8),  # 16 blocks of two attentions with 4 each
    "sd-turbo": ("Stable Diffusion 2.x", 16 * 8),
    "sdxl-turbo": ("Stable Diffusion XL", 560),
    "flux-schnell": ("FLUX.1", 19 * 8 + 38 * 3),
    "sdxl": ("Stable Diffusion XL", 560),  # 70 blocks of two attentions with 4 each
    # 24 blocks with 8 in two streams, but for the last one's output of the text; 13 of them with a second attention
    "sd3.5-medium": ("Stable Diffusion 3", 24 * 8 - 1 + 13 * 4),
    "flux": ("FLUX.1", 19 * 8 + 38 * 3),  # single blocks have one stream and no output projection of their own
    "wan": ("Wan 2.1, video", 30 * 2 * 4),  # 30 blocks with self and cross attention
}


def recipe_of(name: str) -> Any:
    catalog = load_catalog()
    if missing := {"draft-reward-hpsv2", "draft-reward-pickscore"} - catalog.versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", catalog=catalog)


def model_of(name: str) -> Any:
    """The model whose hub name the recipe gives; its networks are those that `test_scale.py` counts."""
    return next(model for model in MODELS.values() if model.hub == recipe_of(name).model.pretrained)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_call_is_one_that_the_pipeline_takes(name: str) -> None:
    recipe = recipe_of(name)
    call = inspect.signature(inspect.unwrap(getattr(diffusers, model_of(name).pipeline).__call__))
    assert {*recipe.model.call, "guidance_scale"} <= call.parameters.keys()


@pytest.mark.parametrize("name", FULL_SIZE)
def test_what_is_measured_is_not_trained_and_prompts_are_enough(name: str) -> None:
    recipe = recipe_of(name)
    assert not {reward.kind for reward in recipe.rewards} & {measure.kind for measure in recipe.metrics}
    held_out = resolve_prompts(recipe.evaluation.prompts, load_catalog())
    assert len(held_out) >= recipe.evaluation.count
    assert len(set(resolve_prompts(recipe.prompts, load_catalog()))) >= 16


@pytest.mark.parametrize("name", some(FULL_SIZE, "sd15", "sd3.5-medium", "wan"))
def test_the_lora_finds_every_attention_of_the_full_size_denoiser(name: str) -> None:
    model, lora = model_of(name), recipe_of(name).model.lora
    attribute, network = next(iter(model.networks.items()))
    denoiser = build_network(network, torch.bfloat16)
    pipe = SimpleNamespace(components={attribute: denoiser}, **{attribute: denoiser})
    add_lora(pipe, rank=lora.rank, alpha=lora.alpha)
    adapted = [part for part, layer in find_denoiser(pipe)[1].named_modules() if isinstance(layer, LoraLayer)]
    assert len(adapted) == FULL_SIZE[name][1]
    second_stream = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    assert {part for part in adapted if not part.endswith((*ATTENTION, *second_stream))} == set()


@pytest.mark.parametrize("name", some(FULL_SIZE, "sdxl", "sd3.5-medium", "flux", "wan"))
def test_its_settings_take_an_update_on_a_small_model_of_the_family(name: str) -> None:
    recipe = recipe_of(name)
    family = next(family for family in FAMILIES if family.name == FULL_SIZE[name][0])
    pipe = family.pipe(getattr(torch, recipe.model.dtype))
    if recipe.model.remember_prompts:
        remember_prompts(pipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=2, alpha=recipe.model.lora.alpha)
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=3,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        decode=recipe.model.decode,
        base_model=lambda: adapters_off(pipe),
        guidance_scale=recipe.model.guidance_scale,
        **{key: SMALLER[key] for key in recipe.model.call if key in SMALLER},
    )
    settings = replace(recipe.train, steps=1, gradient_accumulation_steps=2, warmup_steps=0)
    trainer = Trainer(
        sampler,
        Objective({"redness": Redness(RednessConfig())}),
        DirectLearner(recipe.method),
        ["a cat", "a red dog"],
        settings,
        regularizers=recipe.regularizers,
        device="cpu",
    )
    before = [parameter.detach().clone() for parameter in trainable(pipe)]
    report = trainer.train_step()
    assert report.grad_norm > 0
    assert not report.skipped
    changed = [bool((now != then).any()) for now, then in zip(trainable(pipe), before, strict=True)]
    assert sum(changed) >= len(changed) / 2, "B starts at zero, so that A has no gradient at first"
