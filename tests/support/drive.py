"""What is measured of a family: the sampler against the pipeline's own call and naive autograd through it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import torch

from draft_core import DifferentiableSampler, Draft, DraftLV
from draft_core.sampling.noise_levels import posterior_mean
from draft_core.sampling.pipelines import is_modular
from draft_core.sampling.seams import replaced, step_call
from tests.support.families import Family
from tests.support.newcomer import NewcomerPipeline, newcomer
from tests.support.schedules import Schedule, prediction

DENOISERS = ("unet", "unet_2", "transformer", "transformer_2")


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampler_of(family: Family, pipe: Any, dtype: torch.dtype = torch.float32) -> DifferentiableSampler:
    return DifferentiableSampler(pipe, num_inference_steps=family.steps, **family.call(dtype))


def call_of(family: Family, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The keywords of a plain call of the family's pipeline."""
    prompts = {} if family.prompts is None else {"prompt": one_or_many(family.prompts)}
    steps = {"num_inference_steps": family.steps, "generator": seeded(), "output_type": "pt"}
    return {**family.call(dtype), **prompts, **steps}


def one_or_many(prompts: Sequence[str]) -> str | list[str]:
    return prompts[0] if len(prompts) == 1 else list(prompts)


def plain(pipe: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """The images of a plain call of any pipeline."""
    if is_modular(pipe):
        return pipe(**arguments, output="videos" if "num_frames" in arguments else "images")
    return first_of_call(pipe(**arguments, return_dict=False))


def first_of_call(output: Any) -> torch.Tensor:
    """The images of a call; Stable Video Diffusion returns its own without a tuple around them."""
    return output if isinstance(output, torch.Tensor) else output[0]


def naive(pipe: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """The images of the call with autograd recording all of it."""
    if is_modular(pipe):
        with no_grad_does_nothing():
            return plain(pipe, arguments)
    return first_of_call(inspect.unwrap(type(pipe).__call__)(pipe, **arguments, return_dict=False))


@contextmanager
def no_grad_does_nothing() -> Iterator[None]:
    """`torch.no_grad` without effect, also where it decorates a method already: another way than the sampler's."""
    with (
        mock.patch.object(torch.no_grad, "__enter__", return_value=None),
        mock.patch.object(torch.no_grad, "__exit__", return_value=None),
    ):
        yield


def parameters(pipe: Any) -> list[torch.nn.Parameter]:
    """Those of all its denoisers."""
    denoisers = [getattr(pipe, name, None) for name in DENOISERS]
    return [weight for denoiser in denoisers if denoiser is not None for weight in denoiser.parameters()]


def gradient(images: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of a non-linear function of the images, flat."""
    slope = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    grads = torch.autograd.grad((images.square() * slope).sum(), weights, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def samples_difference(family: Family, pipe: Any, method: Any, expected: torch.Tensor) -> float:
    """Largest difference of the samples of a method from the images of the plain call."""
    sampler = sampler_of(family, pipe)
    plan, renoising = method.plan(sampler.steps, Random(0)), method.renoising()
    rollout = sampler(family.prompts, plan=plan, renoising=renoising, generator=seeded())
    assert gradient(rollout.images, parameters(pipe)).norm() > 0
    return float((rollout.samples.detach() - expected).abs().max())


def replayed(sampler: DifferentiableSampler, prompts: Any, *, batched: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples, and what the replay of their last step makes of the very latents that they took that step from."""
    lv = DraftLV(resamples=2, batched=batched)
    plan, renoising = lv.plan(sampler.steps, Random(0)), lv.renoising()
    starts: list[torch.Tensor] = []

    def watch(step: Any, *args: Any, **kwargs: Any) -> Any:
        starts.append(step_call(step, args, kwargs).sample.detach())
        return step(*args, **kwargs)

    with (
        replaced(sampler.pipe.scheduler, "step", watch),
        mock.patch("draft_core.sampling.sampler.renoised_start", side_effect=lambda *_: starts[sampler.steps - 1]),
        same_global_noise(),
    ):
        rollout = sampler(prompts, plan=plan, renoising=renoising, generator=seeded())
    return rollout.samples.detach(), rollout.images[rollout.sample_count :].detach()


PROMPTS = ["a cat", "a red dog"]
STEPS = 5


def newcomer_call(pipe: NewcomerPipeline) -> torch.Tensor:
    """Naive autograd through the call of a pipeline that tries a scheduler out."""
    call = inspect.unwrap(type(pipe).__call__)
    with same_global_noise():
        return call(pipe, PROMPTS, num_inference_steps=STEPS, generator=seeded(), return_dict=False)[0]


@contextmanager
def same_global_noise() -> Iterator[None]:
    """For schedulers that draw from torch's global state, whatever generator they are given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def newcomer_sampler(pipe: NewcomerPipeline) -> DifferentiableSampler:
    return DifferentiableSampler(pipe, num_inference_steps=STEPS)


def schedule_differences(schedule: Schedule, methods: Sequence[Any]) -> float:
    """Largest difference of samples from those of the plain call, over the methods."""
    pipe = newcomer(schedule.make())
    expected = newcomer_call(pipe).detach()
    sampler = newcomer_sampler(pipe)
    worst = 0.0
    for method in methods:
        plan, renoising = method.plan(sampler.steps, Random(0)), method.renoising()
        with same_global_noise():
            rollout = sampler(PROMPTS, plan=plan, renoising=renoising, generator=seeded())
        worst = max(worst, float((rollout.samples.detach() - expected).abs().max()))
    return worst


def schedule_gradient_error(schedule: Schedule) -> float:
    """Like `gradient_error`, in float64."""
    pipe = newcomer(schedule.make(), torch.float64)
    expected = gradient(newcomer_call(pipe), parameters(pipe))
    sampler = newcomer_sampler(pipe)
    plan = Draft().plan(sampler.steps, Random(0))
    with same_global_noise():
        rollout = sampler(PROMPTS, plan=plan, generator=seeded())
    assert expected.norm() > 0
    return float((gradient(rollout.images, parameters(pipe)) - expected).norm() / expected.norm())


def posterior_mean_error(schedule: Schedule) -> float:
    """Largest error of the posterior mean, over all steps, where all data are one point and the denoiser knows it.

    At every step the noise left in the latents is also checked to have the spread that the level says: then the
    level is that of the scheduler's own chain, not only of its arrays.
    """
    assert schedule.level is not None
    scheduler = schedule.make()
    scheduler.set_timesteps(STEPS)
    x0, noise = torch.randn(2, 4, 4, 40, 40, generator=seeded(), dtype=torch.float64)
    alpha, sigma = schedule.level(scheduler, 0)
    latents = alpha * x0 + sigma * noise
    worst = 0.0
    for step, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = level = schedule.level(scheduler, step)
        spread = float(((latents - alpha * x0) / sigma).std())
        assert abs(spread - 1) < 0.05, f"at step {step} the noise is {spread} times what its level says"
        predicted = prediction(schedule, level, x0, latents)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        mean = posterior_mean(scheduler, predicted, timestep, latents)
        worst = max(worst, float((mean - x0).abs().max()))
        extra = {"generator": seeded(step)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        latents = scheduler.step(predicted, timestep, latents, **extra, return_dict=False)[0]
    return worst


def gradient_error(family: Family, pipe: Any) -> float:
    """Of full DRaFT against naive autograd: norm of the difference by the norm of the gradient."""
    with same_global_noise():
        expected = gradient(naive(pipe, call_of(family, family.precise)), parameters(pipe))
    sampler = sampler_of(family, pipe, family.precise)
    plan = Draft().plan(sampler.steps, Random(0))
    with same_global_noise():
        rollout = sampler(family.prompts, plan=plan, generator=seeded())
    found = gradient(rollout.images, parameters(pipe))
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())
