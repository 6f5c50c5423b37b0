"""What is measured of a family: the sampler against the pipeline's own call and naive autograd through it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import torch
from families import Family

from draft_core import DifferentiableSampler, Draft, StepPlan
from draft_core.seams import is_modular

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
    return pipe(**arguments, return_dict=False)[0]


def naive(pipe: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """The images of the call with autograd recording all of it."""
    if is_modular(pipe):
        with no_grad_does_nothing():
            return plain(pipe, arguments)
    return inspect.unwrap(type(pipe).__call__)(pipe, **arguments, return_dict=False)[0]


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


def samples_difference(family: Family, pipe: Any, plan: StepPlan, expected: torch.Tensor) -> float:
    """Largest difference of the samples of a plan from the images of the plain call."""
    rollout = sampler_of(family, pipe)(family.prompts, plan=plan, generator=seeded())
    assert gradient(rollout.images, parameters(pipe)).norm() > 0
    return float((rollout.samples.detach() - expected).abs().max())


def gradient_error(family: Family, pipe: Any) -> float:
    """Of full DRaFT against naive autograd: norm of the difference by the norm of the gradient."""
    expected = gradient(naive(pipe, call_of(family, family.precise)), parameters(pipe))
    sampler = sampler_of(family, pipe, family.precise)
    rollout = sampler(family.prompts, plan=Draft().plan(sampler.steps, Random(0)), generator=seeded())
    found = gradient(rollout.images, parameters(pipe))
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())
