"""Every family of pipelines against oracles: its own plain call, and naive autograd through all of it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch
from drive import call_of, gradient, gradient_error, parameters, plain, sampler_of, samples_difference, seeded
from families import FAMILIES, Family, flux2_transformer

from draft_core import Draft, DraftK, DraftLV, DRTune, FlowBPSparse, Refl
from draft_core.lora import adapters_off, add_lora, default_targets, load_lora, save_lora, trainable

RNG = Random(0)
SAME_DENOISER = (
    "SD image to image",
    "SD with ControlNet",
    "Stable Diffusion 2.x",
    "SDXL turbo",
    "Latent consistency",
    "CogVideoX, video, DPM",
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),  # float64 RMSNorm
]


def families(*names: str) -> Any:
    """Each family of those names, or of all, as a test of its own."""
    chosen = [family for family in FAMILIES if not names or family.name in names]
    assert len(chosen) == (len(names) or len(FAMILIES))
    skips = {family.name: pytest.mark.skipif(bool(family.missing), reason=f"no {family.missing}") for family in chosen}
    cases = [pytest.param(family, marks=skips[family.name], id=family.name) for family in chosen]
    return pytest.mark.parametrize("family", cases)


@families()
def test_samples_are_those_of_the_plain_call_in_every_bit(family: Family) -> None:
    pipe = family.pipe()
    expected = plain(pipe, call_of(family))
    steps = sampler_of(family, pipe).steps
    for estimator in (DraftK(k=1), Draft(), DraftLV(resamples=1), FlowBPSparse(k=1)):
        plan = estimator.plan(steps, Random(0))
        assert samples_difference(family, pipe, plan, expected) == 0, estimator.kind
    assert torch.equal(plain(pipe, call_of(family)), expected), "and the plain call is as before"


@families()
def test_a_chain_that_is_left_early_gives_finite_pictures_with_gradient(family: Family) -> None:
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    for estimator in (Refl(last=2), DRTune(k=1, last=2)):
        for seed in (0, 1):  # both stops
            plan = estimator.plan(sampler.steps, Random(seed))
            images = sampler(family.prompts, plan=plan, generator=seeded()).images
            assert images.isfinite().all()
            assert gradient(images, parameters(pipe)).norm() > 0


@families()
def test_full_draft_is_naive_autograd(family: Family) -> None:
    assert gradient_error(family, family.pipe(family.precise)) < 1e-12


@families(*(family.name for family in FAMILIES if family.name not in SAME_DENOISER))
def test_a_lora_with_the_default_targets_gets_a_gradient_and_comes_back_from_its_file(
    family: Family, tmp_path: Path
) -> None:
    pipe = family.pipe()
    base = plain(pipe, call_of(family))
    add_lora(pipe, rank=2)
    sampler = sampler_of(family, pipe)
    images = sampler(family.prompts, plan=DraftK(k=1).plan(sampler.steps, RNG), generator=seeded()).images
    assert gradient(images, list(trainable(pipe))).norm() > 0

    with torch.no_grad():
        for weight in trainable(pipe):
            weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(2)))
    tuned = plain(pipe, call_of(family))
    assert not torch.equal(tuned, base)
    with adapters_off(pipe):
        assert torch.equal(plain(pipe, call_of(family)), base)
    save_lora(pipe, tmp_path)
    again = family.pipe()
    load_lora(again, tmp_path)
    torch.testing.assert_close(plain(again, call_of(family)), tuned)
    load_lora(fresh := family.pipe(), tmp_path, scale=0.0)
    torch.testing.assert_close(plain(fresh, call_of(family)), base)


@families("Wan 2.2, video")
def test_both_of_two_denoisers_are_adapted(family: Family) -> None:
    """The first sees the noisy steps, the second the late ones: with one adapted, DRaFT-1 would train nothing."""
    pipe = family.pipe()
    add_lora(pipe, rank=2)
    sampler = sampler_of(family, pipe)
    parts = [[w for w in part.parameters() if w.requires_grad] for part in (pipe.transformer, pipe.transformer_2)]
    first = sum(weight.numel() for weight in parts[0])
    for estimator, reached in ((DraftK(k=1), (False, True)), (Draft(), (True, True))):
        plan = estimator.plan(sampler.steps, RNG)
        images = sampler(family.prompts, plan=plan, generator=seeded()).images
        flat = gradient(images, [*parts[0], *parts[1]])
        assert (bool(flat[:first].any()), bool(flat[first:].any())) == reached


@pytest.mark.skipif(not hasattr(diffusers, "Flux2Transformer2DModel"), reason="no FLUX.2")
def test_attention_that_is_fused_with_other_layers_is_a_default_target() -> None:
    """Most blocks of FLUX.2 hold query, key, value and feed-forward in one layer."""
    targets = default_targets(flux2_transformer(guidance_embeds=False))
    assert "single_transformer_blocks.0.attn.to_qkv_mlp_proj" in targets
    assert "single_transformer_blocks.0.attn.to_out" in targets
