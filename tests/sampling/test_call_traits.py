"""What a pipeline's call does beside one plain chain, and the plans that are refused for it."""

from __future__ import annotations

import inspect
import re
from random import Random
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, Draft, DraftK, DraftLV, DRTune, Refl, StepPlan
from draft_core.errors import SamplerError
from draft_core.sampling import noise_levels, seams
from tests.support.class_checks import class_row
from tests.support.drive import call_of, gradient, parameters, plain, sampler_of, seeded
from tests.support.image_classes import IMAGE_CLASSES, deepfloyd
from tests.support.newcomer import Mixer, NewcomerPipeline, Painter
from tests.support.tiny import embeddings, make_scheduler, tiny_pipe
from tests.support.video_classes import ODD_CLASSES, REFUSED_CLASSES, VIDEO_CLASSES

RNG = Random(0)
BY_NAME = {family.name: family for family in (*IMAGE_CLASSES, *VIDEO_CLASSES, *ODD_CLASSES, *REFUSED_CLASSES)}
PROMPTS = ["a cat", "a red dog"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def run(sampler: DifferentiableSampler, method: Any, prompts: Any = PROMPTS) -> Any:
    plan, renoising = method.plan(sampler.steps, RNG), method.renoising()
    return sampler(prompts, plan=plan, renoising=renoising, generator=seeded())


# Several chains


class TwiceOver(NewcomerPipeline):
    """Its call goes through the schedule twice and gives the images of the second chain."""

    @torch.no_grad()
    def __call__(self, prompt: Any, num_inference_steps: int = 5, generator: Any = None, **more: Any) -> Any:
        again = inspect.unwrap(NewcomerPipeline.__call__)
        again(self, prompt, num_inference_steps, generator=generator, return_dict=False)
        return again(self, prompt, num_inference_steps, generator=generator, return_dict=False)

    __call__.__wrapped__.__signature__ = inspect.signature(NewcomerPipeline.__call__)  # type: ignore[attr-defined]


def twice_over() -> DifferentiableSampler:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = TwiceOver(Mixer(), Painter(), make_scheduler(diffusers.DDIMScheduler))
    return DifferentiableSampler(pipe, num_inference_steps=3)


@pytest.mark.parametrize("method", [Refl(last=2), DraftLV(resamples=1), DRTune(k=1, last=2)], ids=lambda one: one.kind)
def test_a_call_of_several_chains_is_neither_left_early_nor_renoised(method: Any) -> None:
    sampler = twice_over()
    assert sampler.steps == 6
    with pytest.raises(SamplerError, match=r"TwiceOver: its call runs 2 chains one after another; use a method that"):
        run(sampler, method)


def test_a_call_of_several_chains_is_trained_as_a_whole() -> None:
    sampler = twice_over()
    rollout = run(sampler, Draft())
    assert gradient(rollout.images, parameters(sampler.pipe)).norm() > 0
    kept = sampler(PROMPTS, plan=StepPlan(6, frozenset(), keep_trajectory=True), generator=seeded())
    with pytest.raises(SamplerError, match="runs 2 chains"):
        sampler.replay(kept, {5: kept.trajectory[5].before})


# What denoisers keep between steps


def kv_sampler(**more: Any) -> DifferentiableSampler:
    family = BY_NAME["Flux2KleinKVPipeline"]
    pipe = family.pipe()
    return DifferentiableSampler(pipe, num_inference_steps=3, **family.call(torch.float32), **more)


def test_keys_and_values_of_a_first_step_that_is_not_recorded_are_refused() -> None:
    sampler = kv_sampler()
    for method, message in (
        (DraftK(k=1), "keeps keys and values, or outputs, of its first step for the later ones"),
        (DraftLV(resamples=1), "which a replay would lack"),
    ):
        with pytest.raises(SamplerError, match=f"Flux2KleinKVPipeline: its denoiser .*{message}"):
            run(sampler, method, ["a cat"])
    assert run(sampler, Draft(), ["a cat"]).images.requires_grad
    with pytest.raises(SamplerError, match="switch gradient_checkpointing off"):
        run(kv_sampler(gradient_checkpointing=True), Draft(), ["a cat"])


def test_a_cache_that_diffusers_puts_into_a_denoiser_is_seen() -> None:
    sampler = DifferentiableSampler(tiny_pipe(), num_inference_steps=3, guidance_scale=4.0, **embeddings())
    sampler.pipe.unet.is_cache_enabled = True  # what `enable_cache` of a transformer leaves
    with pytest.raises(SamplerError, match="keeps keys and values, or outputs"):
        run(sampler, DraftK(k=1), None)


def test_a_guider_that_remembers_is_replayed_and_keeps_no_graph() -> None:
    family = BY_NAME["StableDiffusionXLModularPipeline"]
    assert class_row(family, ("replay",)) == {"replay": "identical"}
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    images = run(sampler, Draft()).images
    assert torch.equal(images.detach(), plain(pipe, call_of(family)))
    run(sampler, Draft())
    assert not pipe.guider.momentum_buffer.running_average.requires_grad


# Steps that are told more, and noise of another size


def test_steps_with_timesteps_of_their_own_for_each_token_are_refused() -> None:
    family = BY_NAME["LTXConditionPipeline"]
    sampler = sampler_of(family, family.pipe())
    for method in (Refl(last=2), DraftLV(resamples=1)):
        with pytest.raises(SamplerError, match=r"FlowMatchEuler.*: its step is told per_token_timesteps, under which"):
            run(sampler, method, ["a cat"])
    kept = sampler(["a cat"], plan=StepPlan(2, frozenset(), keep_trajectory=True), generator=seeded())
    with pytest.raises(SamplerError, match="per_token_timesteps"):
        sampler.replay(kept, {1: kept.trajectory[1].before}, lambda output: output.posterior_mean())


def test_what_a_step_is_told_beside_the_usual_is_noted_by_name() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    x = torch.zeros(1, 2, 2)
    told = {"model_output": x, "timestep": 1.0, "sample": x, "generator": seeded(), "s_noise": 1.0}
    assert seams.step_call(scheduler.step, (), told).told == ()
    assert seams.step_call(scheduler.step, (), {**told, "per_token_timesteps": None}).told == ()
    assert seams.step_call(scheduler.step, (), {**told, "per_token_timesteps": x}).told == ("per_token_timesteps",)


def test_noise_of_another_deviation_is_renoised_with_that_deviation() -> None:
    """PRX in pixels: x = (1 - sigma) x0 + 2 sigma eps."""
    family = BY_NAME["PRXPixelPipeline"]
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    with torch.no_grad():
        x0 = sampler(family.prompts, plan=StepPlan(2, frozenset()), generator=seeded()).latents
    stepped: list[torch.Tensor] = []

    def watch(step: Any, *args: Any, **kwargs: Any) -> Any:
        stepped.append(seams.step_call(step, args, kwargs).sample.detach())
        return step(*args, **kwargs)

    with seams.replaced(pipe.scheduler, "step", watch), torch.no_grad():
        run(sampler, DraftLV(resamples=1), family.prompts)
    source = seeded()
    torch.randn(x0.shape, generator=source)
    eps = torch.randn(x0.shape, generator=source)
    sigma = pipe.scheduler.sigmas[1]
    torch.testing.assert_close(stepped[-1], (1 - sigma) * x0 + sigma * 2 * eps)


def test_a_chain_from_noise_that_the_scheduler_does_not_know_is_not_renoised() -> None:
    family = BY_NAME["PRXPixelPipeline"]
    pipe = family.pipe()
    pipe.register_to_config(noise_scale=1.0)
    prepare = pipe.prepare_latents
    pipe.prepare_latents = lambda *args, **kwargs: 3 * prepare(*args, **kwargs)
    with pytest.raises(
        SamplerError, match=r"its chain starts from noise (2\.9|3|3\.1) times as large as its scheduler"
    ):
        run(sampler_of(family, pipe), DraftLV(resamples=1), family.prompts)


@pytest.mark.parametrize("batch", [1, 2])
def test_timesteps_that_are_given_once_for_each_item_have_one_level(batch: int) -> None:
    scheduler = make_scheduler(diffusers.DDIMScheduler)
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]
    latents = torch.ones(batch, 1, 2, 2)
    alpha, sigma = noise_levels.noise_level(scheduler, t.expand(batch), latents)
    expected = scheduler.alphas_cumprod[int(t)]
    torch.testing.assert_close(alpha.flatten(), expected.sqrt()[None])
    torch.testing.assert_close(sigma.flatten(), (1 - expected).sqrt()[None])
    if batch > 1:
        with pytest.raises(SamplerError, match="its items are at timesteps of their own"):
            noise_levels.noise_level(scheduler, scheduler.timesteps[:2], latents)


# Calls without a prompt, and what a call asks of its networks


def test_a_call_without_a_prompt_is_counted_and_sampled_without_one() -> None:
    family = BY_NAME["DDPMPipeline"]
    sampler = sampler_of(family, family.pipe())
    assert sampler.steps == 2
    assert torch.equal(run(sampler, Draft(), None).images.detach(), plain(sampler.pipe, call_of(family)))
    with pytest.raises(SamplerError, match="DDPMPipeline: its call takes no prompt; give None"):
        run(sampler, Draft())


def test_a_call_that_takes_no_number_of_steps_is_not_given_one() -> None:
    class Three(NewcomerPipeline):
        """Three steps, whatever is asked."""

        @torch.no_grad()
        def __call__(
            self, prompt: Any, generator: Any = None, output_type: str = "pt", return_dict: bool = True
        ) -> Any:
            return inspect.unwrap(NewcomerPipeline.__call__)(
                self, prompt, 3, generator=generator, return_dict=return_dict
            )

    pipe = Three(Mixer(), Painter(), make_scheduler(diffusers.DDIMScheduler))
    with pytest.raises(
        SamplerError, match="Three: its call takes no num_inference_steps; give num_inference_steps=None"
    ):
        DifferentiableSampler(pipe, num_inference_steps=5)
    sampler = DifferentiableSampler(pipe, num_inference_steps=None)
    assert sampler.steps == 3
    assert run(sampler, Draft()).images.requires_grad


def test_a_call_that_looks_into_its_denoiser_is_counted_with_the_real_one() -> None:
    family = BY_NAME["StableDiffusionSAGPipeline"]
    sampler = sampler_of(family, family.pipe())
    assert sampler.steps == family.steps
    with pytest.raises(SamplerError, match="its call looks into its denoiser at every step"):
        run(sampler, DraftLV(resamples=1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "StableDiffusionPanoramaPipeline",
            "it copies what its DDIMScheduler remembers, for several views of one image",
        ),
        ("SkyReelsV2DiffusionForcingPipeline", "its call takes no step of its own scheduler, it steps copies of it"),
        ("StableDiffusionLDM3DPipeline", r"its call raised Exception \(This type pt is not supported\); see what its"),
    ],
)
def test_what_cannot_be_driven_is_refused_in_a_sentence(name: str, message: str) -> None:
    family = BY_NAME[name]
    with pytest.raises(SamplerError, match=message):
        run(sampler_of(family, family.pipe()), Draft())


def test_two_videos_come_back_as_two() -> None:
    family = BY_NAME["StableVideoDiffusionPipeline"]
    sampler = sampler_of(family, family.pipe())
    with torch.no_grad():
        rollout = run(sampler, Draft(), None)
    assert rollout.images.shape[:3] == (2, 3, 3)
    assert rollout.sample_count == 2


def test_a_checker_that_the_licence_demands_is_not_asked_to_be_taken_off() -> None:
    pipe = deepfloyd()
    pipe.safety_checker = None
    licensed = type("CosmosLikePipeline", (type(pipe),), {"__module__": "diffusers.pipelines.cosmos.pipeline_cosmos"})
    pipe.__class__ = licensed
    with pytest.raises(SamplerError, match="CosmosLikePipeline: its licence demands its safety checker"):
        DifferentiableSampler(pipe, num_inference_steps=2)


# Copies in one batch


def test_copies_in_one_batch_are_given_what_the_run_drew() -> None:
    """The UNet sees the noisy small image at every step."""
    family = BY_NAME["StableDiffusionUpscalePipeline"]
    assert float(class_row(family, ("batched replay",))["batched replay"].replace("identical", "0")) <= 1e-5


def test_a_call_that_draws_for_one_item_after_another_is_not_batched() -> None:
    family = BY_NAME["LTXImageToVideoPipeline"]
    row = class_row(family, ("replay", "batched replay"))
    assert row["replay"] == "identical"
    assert re.match("refused: several copies cannot be made in one batch: the run drew noise of", row["batched replay"])
