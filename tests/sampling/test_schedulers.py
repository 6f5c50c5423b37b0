"""Every scheduler against oracles: the plain call, naive autograd, a denoiser that knows the one data point."""

from __future__ import annotations

import copy
import inspect
import re
from random import Random
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, Draft, DraftK, DraftLV, FlowBPSparse, Refl
from draft_core.errors import SamplerError
from draft_core.plan import Renoising
from draft_core.sampling.noise_levels import posterior_mean
from draft_core.sampling.seams import replaced
from tests.support.drive import (
    PROMPTS,
    gradient,
    newcomer_call,
    newcomer_sampler,
    parameters,
    posterior_mean_error,
    replayed,
    schedule_differences,
    schedule_gradient_error,
    seeded,
)
from tests.support.newcomer import NewcomerOutput, NewcomerPipeline, newcomer
from tests.support.schedules import CLEAR, SCHEDULES, Schedule

# diffusers' schedulers make tensors of tensors and index by one-element arrays
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def schedules(*, levelled: bool = False) -> Any:
    """Each scheduler as a test of its own; with `levelled`, those alone whose noise level is known."""
    cases = [
        pytest.param(
            schedule, id=schedule.name, marks=pytest.mark.skipif(bool(schedule.missing), reason=schedule.missing)
        )
        for schedule in SCHEDULES
        if schedule.level or not levelled
    ]
    return pytest.mark.parametrize("schedule", cases)


@schedules()
def test_samples_are_those_of_the_plain_call_in_every_bit(schedule: Schedule) -> None:
    methods = [DraftK(k=1), Draft(), FlowBPSparse(k=2)]
    assert schedule_differences(schedule, methods) == 0


@schedules()
def test_full_draft_is_naive_autograd(schedule: Schedule) -> None:
    assert schedule_gradient_error(schedule) < 1e-12


@schedules(levelled=True)
def test_the_posterior_mean_is_the_one_point_of_the_data_at_every_step(schedule: Schedule) -> None:
    assert posterior_mean_error(schedule) < 1e-4  # schedulers keep their levels in float32


@schedules(levelled=True)
@pytest.mark.parametrize("batched", [False, True])
def test_re_noised_latents_have_the_level_from_which_the_last_step_starts(schedule: Schedule, batched: bool) -> None:
    pipe = newcomer(schedule.make())
    sampler = newcomer_sampler(pipe)
    starts: list[torch.Tensor] = []
    ends: list[torch.Tensor] = []

    def watch(step: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        output = step(model_output, timestep, sample, *args, **kwargs)
        starts.append(sample)
        ends.append(output[0])
        return output

    lv = DraftLV(resamples=2, batched=batched)
    plan, renoising = lv.plan(sampler.steps, Random(0)), lv.renoising()
    with replaced(pipe.scheduler, "step", watch):
        rollout = sampler(PROMPTS, plan=plan, renoising=renoising, generator=seeded())
    real, *again = starts[sampler.steps - 1 :]
    x0 = ends[sampler.steps - 1].detach()
    noisy = torch.cat(again)
    assert schedule.level is not None
    alpha, sigma = schedule.level(pipe.scheduler, sampler.steps - 1)
    noise = (noisy - alpha * torch.cat([x0, x0])) / sigma
    assert noise.shape == (2 * len(real), *real.shape[1:])
    assert not noisy.requires_grad
    one, other = noise.chunk(2)
    assert not torch.allclose(one, other)
    # 48 standard normal numbers, and the same ones for every scheduler but those that draw on their way
    assert 0.6 < noise.std() < 1.4
    if "generator" not in inspect.signature(pipe.scheduler.step).parameters:
        draws = seeded()
        torch.randn(real.shape, generator=draws)
        expected = torch.stack([torch.randn(real.shape, generator=draws) for _ in range(2)]).reshape(noise.shape)
        torch.testing.assert_close(noise.float(), expected, rtol=1e-3, atol=2e-3)
    assert gradient(rollout.images[len(real) :], parameters(pipe)).norm() > 0


@schedules(levelled=True)
def test_a_replay_from_the_latents_of_the_last_step_gives_the_sample_again(schedule: Schedule) -> None:
    """With the scheduler's index and its memory of earlier outputs as they were."""
    if schedule.noisy_end:
        pytest.skip("its last step draws noise anew")
    samples, again = replayed(newcomer_sampler(newcomer(schedule.make())), PROMPTS, batched=False)
    assert torch.equal(again, torch.cat([samples, samples]))


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s.level is None], ids=lambda s: s.name)
def test_a_scheduler_that_cannot_add_noise_is_refused_by_name(schedule: Schedule) -> None:
    sampler = newcomer_sampler(newcomer(schedule.make()))
    for method in (Refl(last=2), DraftLV(resamples=1)):
        plan, renoising = method.plan(sampler.steps, Random(0)), method.renoising()
        with pytest.raises(SamplerError, match=re.escape(f"{schedule.class_name} cannot add noise")):
            sampler(PROMPTS, plan=plan, renoising=renoising, generator=seeded())


@pytest.mark.parametrize("limit", [{"clip_sample": True, "clip_sample_range": 0.5}, {"thresholding": True}], ids=str)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_where_the_scheduler_says_what_x0_it_predicts_the_posterior_mean_is_that(name: str, limit: Any) -> None:
    scheduler = getattr(diffusers, name)(**{**CLEAR, **limit})
    scheduler.set_timesteps(5)
    latents, predicted = torch.randn(2, 3, 4, 8, 8, generator=seeded())
    for timestep in scheduler.timesteps:
        mean = posterior_mean(scheduler, predicted, timestep, latents)
        torch.testing.assert_close(mean, scheduler.step(predicted, timestep, latents).pred_original_sample)


def test_a_prediction_of_unknown_meaning_is_refused_by_name() -> None:
    """Seen while trying: without this a consistency model was read as a flow."""
    scheduler = diffusers.CMStochasticIterativeScheduler()
    scheduler.set_timesteps(3)
    latents = torch.ones(1, 3, 4, 4)
    with pytest.raises(SamplerError, match="CMStochasticIterativeScheduler predicts None, of which the posterior mean"):
        posterior_mean(scheduler, latents, scheduler.timesteps[0], latents)


def test_a_step_without_the_usual_arguments_is_refused_by_name() -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.step = lambda model_output, sigma, sample: sample
    with pytest.raises(SamplerError, match="the step of its DDIMScheduler takes no timestep; use another scheduler"):
        newcomer_sampler(newcomer(scheduler))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KarrasVeScheduler", "the step of its KarrasVeScheduler takes no timestep and no sample"),
        ("ScoreSdeVeScheduler", "NewcomerPipeline has no scheduler"),
    ],
)
def test_schedulers_that_the_page_of_models_names_are_refused(name: str, message: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"no {name}")
    with pytest.raises(SamplerError, match=message):
        newcomer_sampler(newcomer(getattr(diffusers, name)()))


# A pipeline class that diffusers adds tomorrow


def test_a_pipeline_never_seen_before_works() -> None:
    """Own loop, own latents, a denoiser called twice a step whose arguments and output have names of their own."""
    pipe = newcomer(diffusers.DDIMScheduler(**CLEAR), torch.float64)
    expected = newcomer_call(pipe)
    sampler = DifferentiableSampler(pipe, num_inference_steps=5, strength_of_words=3.0)
    rollout = sampler(PROMPTS, plan=Draft().plan(5, Random(0)), generator=seeded())
    assert torch.equal(rollout.images, expected)
    torch.testing.assert_close(
        gradient(rollout.images, parameters(pipe)), gradient(expected, parameters(pipe)), rtol=1e-12, atol=1e-15
    )


def test_detached_input_cuts_the_latents_of_a_pipeline_never_seen_before() -> None:
    """The Jacobian of the denoiser is gone, its direct part stays: what the sparse flow method promises."""
    pipe = newcomer(diffusers.DDIMScheduler(**CLEAR), torch.float64)
    sampler = newcomer_sampler(pipe)
    seen: list[bool] = []

    def watch(forward: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["tokens"].requires_grad)
        return forward(**kwargs)

    assert sampler.steps == 5
    with replaced(pipe.transformer, "forward", watch):
        sampler(PROMPTS, plan=Draft().plan(5, Random(0)), generator=seeded())
        assert seen == [False] * 2 + [True] * 8
        seen.clear()
        sampler(PROMPTS, plan=FlowBPSparse(k=5).plan(5, Random(0)), generator=seeded())
        assert seen == [False] * 10


class TwoStreams(NewcomerPipeline):
    """Steps a second chain by a copy of its scheduler, as video with sound does."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str] | str,
        num_inference_steps: int = 5,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        self.scheduler.set_timesteps(num_inference_steps)
        other = copy.deepcopy(self.scheduler)
        tokens, sound = torch.randn(2, len(prompts), 4, 3, generator=generator, dtype=self.transformer.dtype)
        for when in self.scheduler.timesteps:
            answer = self.transformer(tokens=tokens + sound, when=when, words=torch.ones(len(prompts)))["answer"]
            tokens = self.scheduler.step(answer, when, tokens, return_dict=False)[0]
            sound = other.step(-answer, when, sound, return_dict=False)[0]
        images = self.painter(tokens)
        return NewcomerOutput(images=images) if return_dict else (images,)


def test_a_pipeline_that_copies_its_scheduler_steps_the_copy_by_itself() -> None:
    """A multi-step solver remembers its outputs: those of one chain must not reach the other."""
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    one = newcomer(scheduler, torch.float64)
    pipe = TwoStreams(one.transformer, one.painter, scheduler)
    expected = inspect.unwrap(type(pipe).__call__)(pipe, PROMPTS, generator=seeded()).images
    sampler = DifferentiableSampler(pipe, num_inference_steps=5)
    assert sampler.steps == 5
    rollout = sampler(PROMPTS, plan=Draft().plan(5, Random(0)), generator=seeded())
    assert torch.equal(rollout.images, expected)
    torch.testing.assert_close(
        gradient(rollout.images, parameters(pipe)), gradient(expected, parameters(pipe)), rtol=1e-12, atol=1e-15
    )
    with pytest.raises(SamplerError, match="it copies its scheduler for a second chain, which cannot be replayed"):
        sampler(
            PROMPTS, plan=DraftLV(resamples=1).plan(5, Random(0)), renoising=Renoising(copies=1), generator=seeded()
        )
