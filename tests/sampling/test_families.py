"""Every family of pipelines against oracles: its own plain call, and naive autograd through all of it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, Draft, DraftK, DraftLV, DRTune, FlowBPSparse, Refl
from draft_core.adapters.files import load_lora, write_lora
from draft_core.adapters.lora import ATTENTION, adapters_off, add_lora, default_targets, trainable
from draft_core.errors import SamplerError
from draft_core.plan import Renoising
from draft_core.sampling.seams import replaced
from tests.support.drive import (
    call_of,
    gradient,
    gradient_error,
    parameters,
    plain,
    replayed,
    sampler_of,
    samples_difference,
    seeded,
)
from tests.support.families import DISTINCT, FAMILIES, PROMPTS, Family, flux2_transformer, sd
from tests.support.tiny import make_scheduler
from tests.support.video_classes import WAN, hunyuan_video

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
    steps = sampler_of(family, pipe).steps
    counted: list[int] = []

    def count(step: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(len(counted))
        return step(*args, **kwargs)

    with replaced(pipe.scheduler, "step", count):
        expected = plain(pipe, call_of(family))
    assert steps == len(counted)
    for method in (DraftK(k=1), Draft(), DraftLV(resamples=1), FlowBPSparse(k=1)):
        assert samples_difference(family, pipe, method, expected) == 0, method.kind
    assert torch.equal(plain(pipe, call_of(family)), expected), "and the plain call is as before"


@families(*DISTINCT)
@pytest.mark.parametrize("batched", [False, True], ids=["apart", "batched"])
def test_a_replay_from_the_latents_of_the_last_step_gives_the_sample_again(family: Family, batched: bool) -> None:
    """DRaFT-LV's second pass skips all steps but the last, and must leave nothing of them out."""
    sampler = sampler_of(family, family.pipe())
    if batched and len(family.prompts or PROMPTS) == 1:
        with pytest.raises(SamplerError, match="batched prompts are not supported"):
            replayed(sampler, family.prompts, batched=batched)
        return
    samples, again = replayed(sampler, family.prompts, batched=batched)
    if batched:
        torch.testing.assert_close(again, torch.cat([samples, samples]), rtol=0, atol=1e-5)
    else:
        assert torch.equal(again, torch.cat([samples, samples]))


@families(*DISTINCT)
def test_a_chain_that_is_left_early_gives_finite_images_with_gradient(family: Family) -> None:
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    for method in (Refl(last=2), DRTune(k=1, last=2)):
        for seed in (0, 1):  # both stops
            plan = method.plan(sampler.steps, Random(seed))
            images = sampler(family.prompts, plan=plan, generator=seeded()).images
            assert images.isfinite().all()
            assert gradient(images, parameters(pipe)).norm() > 0


@families()
def test_full_draft_is_naive_autograd(family: Family) -> None:
    assert gradient_error(family, family.pipe(family.precise)) < 1e-12


@families(*(name for name in DISTINCT if name not in SAME_DENOISER))
def test_a_lora_with_the_default_targets_gets_a_gradient_and_comes_back_from_its_file(
    family: Family, tmp_path: Path
) -> None:
    pipe = family.pipe()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):  # torch's matmul folds, or not, by this flag: other last bits
            part.requires_grad_(False)
    base = plain(pipe, call_of(family))
    add_lora(pipe, rank=2)
    assert torch.equal(plain(pipe, call_of(family)), base)
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
    write_lora(pipe, tmp_path)
    again = family.pipe()
    load_lora(again, tmp_path)
    torch.testing.assert_close(plain(again, call_of(family)), tuned)
    load_lora(fresh := family.pipe(), tmp_path, scale=0.0)
    torch.testing.assert_close(plain(fresh, call_of(family)), base)


# The run that counts the steps


@families("Stable Diffusion 1.x", "Wan 2.1, video", "SDXL, modular", "FLUX.3", "SD image to image")
def test_counting_the_steps_leaves_no_trace(family: Family) -> None:
    pipe = family.pipe()
    plain(pipe, call_of(family))
    guiders = [part for name, part in pipe.components.items() if name == "guider"]
    owners = [pipe, pipe.scheduler, *guiders]

    def state() -> list[Any]:
        definitions = ("_blocks", "_component_specs")  # of a modular pipeline, told in another order each time
        return [
            {name: repr(value) for name, value in vars(owner).items() if name not in definitions} for owner in owners
        ]

    before, random = state(), torch.get_rng_state()
    assert sampler_of(family, pipe).steps > 0
    assert state() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_steps_are_those_that_the_call_takes() -> None:
    by_name = {family.name: family for family in FAMILIES}
    img2img = by_name["SD image to image"]
    assert (img2img.steps, sampler_of(img2img, img2img.pipe()).steps) == (6, 3), "strength 0.5"
    for cls, steps in (("HeunDiscreteScheduler", 5), ("PNDMScheduler", 4)):
        scheduler = make_scheduler(getattr(diffusers, cls), skip_prk_steps=True)
        assert sampler_of(by_name["Stable Diffusion 1.x"], sd(scheduler=scheduler)).steps == steps


# What pipelines want of their arguments


@pytest.mark.parametrize("prompts", [["a cat", "a red dog"], ["a cat"]], ids=len)
@pytest.mark.parametrize("negative", ["blurry", ["blurry"]], ids=["string", "list"])
def test_prompts_and_negative_prompts_are_of_one_type(prompts: list[str], negative: Any) -> None:
    """Pipelines refuse a list beside a string, and a list of another length."""
    pipe = FAMILIES[0].pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=4.0, negative_prompt=negative)
    rollout = sampler(
        prompts, plan=DraftLV(resamples=1).plan(2, RNG), renoising=Renoising(copies=1), generator=seeded()
    )
    expected = pipe(
        prompts,
        negative_prompt=["blurry"] * len(prompts),
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=seeded(),
        output_type="pt",
    ).images
    assert torch.equal(rollout.samples, expected)


def test_a_negative_prompt_that_a_call_leaves_a_string_stands_beside_every_prompt_as_a_list() -> None:
    """HunyuanVideo encodes a string once for all prompts, which differs in the last bits from a list of it."""
    call = {**WAN, "prompt_template": {"template": "{}", "crop_start": 0}, "true_cfg_scale": 4.0, "guidance_scale": 4.0}
    pipe, negative = hunyuan_video(), ["ugly"] * len(PROMPTS)
    plain = {**call, "num_inference_steps": 2, "generator": seeded(), "output_type": "pt"}
    expected = pipe(list(PROMPTS), negative_prompt=negative, **plain).frames
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, negative_prompt="ugly", **call)
    assert torch.equal(sampler(list(PROMPTS), plan=DraftK(k=1).plan(2, RNG), generator=seeded()).samples, expected)


@pytest.mark.parametrize("texts", [["ugly", "pale"], []], ids=len)
def test_texts_for_another_number_of_prompts_are_refused(texts: list[str]) -> None:
    sampler = DifferentiableSampler(FAMILIES[0].pipe(), num_inference_steps=2, negative_prompt=texts)
    with pytest.raises(SamplerError, match=f"negative_prompt has {len(texts)} texts for [13] prompts?; give one text"):
        sampler(["a", "b", "c"], plan=DraftK(k=1).plan(2, RNG), generator=seeded())


def test_a_text_for_each_prompt_stands_beside_its_own() -> None:
    prompts, negative, pipe = ["a cat", "a red dog", "a hat"], ["ugly", "pale", "blurry"], FAMILIES[0].pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=4.0, negative_prompt=negative)
    plain = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": seeded(), "output_type": "pt"}
    expected = pipe(prompts, negative_prompt=negative, **plain).images
    assert torch.equal(sampler(prompts, plan=DraftK(k=1).plan(2, RNG), generator=seeded()).samples, expected)


@families("Stable Diffusion 3")
@pytest.mark.parametrize("given", [lambda text: text, lambda text: [text]], ids=["string", "list"])
@pytest.mark.parametrize("prompts", [["a cat", "a red dog", "a hat"], ["a cat"]], ids=len)
def test_prompts_of_further_encoders_stand_beside_every_prompt(family: Family, given: Any, prompts: list[str]) -> None:
    texts = {"prompt_2": "oil paint", "prompt_3": "sharp", "negative_prompt": "ugly", "negative_prompt_3": "blurry"}
    call, pipe = family.call(torch.float32), family.pipe()
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=2, **call, **{name: given(text) for name, text in texts.items()}
    )
    plan = DraftK(k=1).plan(2, RNG)
    expected = pipe(
        prompts,
        **{name: [text] * len(prompts) for name, text in texts.items()},
        **call,
        num_inference_steps=2,
        generator=seeded(),
        output_type="pt",
    ).images
    assert torch.equal(sampler(prompts, plan=plan, generator=seeded()).samples, expected)


@families("SD image to image")
def test_what_the_call_refuses_is_said_in_one_sentence(family: Family) -> None:
    call = {**family.call(torch.float32), "strength": 2.0}
    sampler = DifferentiableSampler(family.pipe(), num_inference_steps=2, **call)
    with pytest.raises(
        SamplerError, match=r"Img2ImgPipeline: its call raised ValueError \(The value of strength should"
    ):
        sampler(["a cat"], plan=DraftK(k=1).plan(2, RNG))


@families("Wan 2.1, video", "FLUX.1")
def test_several_for_each_prompt_stand_beside_it(family: Family) -> None:
    several = "num_videos_per_prompt" if "video" in family.name else "num_images_per_prompt"
    pipe = family.pipe()
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=family.steps, **family.call(torch.float32), **{several: 2}
    )
    assert family.prompts is not None
    for batched in (False, True):
        lv = DraftLV(resamples=2, batched=batched)
        plan, renoising = lv.plan(sampler.steps, RNG), lv.renoising()
        rollout = sampler(family.prompts, plan=plan, renoising=renoising, generator=seeded())
        assert torch.equal(rollout.samples, plain(pipe, {**call_of(family), several: 2}))
        assert rollout.prompts == ("a cat", "a cat", "a red dog", "a red dog") * 3


@families("Wan 2.2, video")
def test_both_of_two_denoisers_are_adapted(family: Family) -> None:
    """The first sees the noisy steps, the second the late ones: with one adapted, DRaFT-1 would train nothing."""
    pipe = family.pipe()
    add_lora(pipe, rank=2)
    sampler = sampler_of(family, pipe)
    parts = [[w for w in part.parameters() if w.requires_grad] for part in (pipe.transformer, pipe.transformer_2)]
    first = sum(weight.numel() for weight in parts[0])
    for method, reached in ((DraftK(k=1), (False, True)), (Draft(), (True, True))):
        plan = method.plan(sampler.steps, RNG)
        images = sampler(family.prompts, plan=plan, generator=seeded()).images
        flat = gradient(images, [*parts[0], *parts[1]])
        assert (bool(flat[:first].any()), bool(flat[first:].any())) == reached


@pytest.mark.skipif(not hasattr(diffusers, "Flux2Transformer2DModel"), reason="no FLUX.2")
def test_attention_that_is_fused_with_other_layers_is_a_default_target() -> None:
    """Most blocks of FLUX.2 hold query, key, value and feed-forward in one layer."""
    targets = default_targets(flux2_transformer(guidance_embeds=False))
    assert "single_transformer_blocks.0.attn.to_qkv_mlp_proj" in targets
    assert "single_transformer_blocks.0.attn.to_out" in targets


def test_default_targets_are_those_of_the_class() -> None:
    if not hasattr(diffusers, "Kandinsky5Transformer3DModel"):
        pytest.skip("no Kandinsky 5")
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
    )
    layers = [name for name in default_targets(transformer) if name not in ATTENTION]
    assert len(layers) == 4 * 3, "self-attention of the text block, self- and cross-attention of the visual one"
    assert all("attention" in name for name in layers)
