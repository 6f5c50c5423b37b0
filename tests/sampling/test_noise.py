"""A sampler that adds noise to deterministic steps: against DDIM's eta and Flow-GRPO's step, and only in training."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, Objective, StepPlan, evaluate
from draft_core.errors import SamplerError
from draft_core.plan import Renoising
from draft_core.sampling import seams
from draft_core.sampling.rollout import StepOutput
from tests.support.drive import seeded
from tests.support.tiny import byte_tokenizer, embeddings, make_scheduler, tiny_pipe

STEPS = 4


def images(noise: float = 0.0, **call: Any) -> torch.Tensor:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=STEPS, guidance_scale=3.0, noise=noise, **embeddings(), **call
    )
    with torch.no_grad():
        return sampler(plan=StepPlan(sampler.steps, frozenset()), generator=seeded()).images


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_samples_are_those_of_ddim_with_that_eta(eta: float) -> None:
    """The same generator gives the pipeline's own stochastic step the same noise, also where the last draws none."""
    torch.testing.assert_close(images(noise=eta), images(eta=eta), rtol=0, atol=2e-5)
    assert (images(noise=eta) - images()).abs().max() > 1e-2


def test_without_noise_samples_are_the_pipelines_in_every_bit() -> None:
    assert torch.equal(images(noise=0.0), images())


@pytest.mark.parametrize("sigma", [0.3, 0.6, 0.9])
def test_small_steps_of_a_flow_are_flow_grpos(sigma: float) -> None:
    """Liu et al. 2025, equation 9, with a = eta sqrt(2): mean and deviation come the closer the smaller the step is."""
    errors = []
    eta = 0.5
    for share in (0.05, 0.01):
        size = share * min(sigma, 1 - sigma)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[sigma, sigma - size])
        scheduler.sigmas = torch.tensor([sigma, sigma - size, 0.0])
        x, v = torch.randn(2, 1, 3, 4, 4, generator=seeded())
        call = seams.step_call(scheduler.step, (), {"model_output": v, "timestep": scheduler.timesteps[0], "sample": x})
        gaussian = StepOutput(scheduler, 0, call, noise=eta).gaussian()
        level = eta * 2**0.5 * (sigma / (1 - sigma)) ** 0.5
        drift = v + level**2 / (2 * sigma) * (x + (1 - sigma) * v)
        mean, std = x - drift * size, level * size**0.5
        of_mean = float((gaussian.mean - mean).abs().max() / (mean - x).abs().max())
        errors.append((of_mean, abs(float(gaussian.std.max()) / std - 1)))
    assert max(errors[1]) < 0.03
    assert errors[1][0] < 0.3 * errors[0][0]
    assert errors[1][1] < 0.3 * errors[0][1]


def test_noise_is_drawn_from_the_generator_of_each_image() -> None:
    pipe = tiny_pipe()
    arguments = embeddings()

    def drawn(items: list[int]) -> torch.Tensor:
        some = {name: value[items] for name, value in arguments.items()}
        sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=3.0, noise=0.7, **some)
        generators = [seeded(item) for item in items]
        with torch.no_grad():
            return sampler(plan=StepPlan(sampler.steps, frozenset()), generator=generators).images

    torch.testing.assert_close(drawn([0, 1])[1:], drawn([1]), rtol=0, atol=1e-5)


def test_gradient_flows_through_noisy_steps_and_copies_are_made_of_them() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=3.0, noise=0.7, **embeddings())
    plan = StepPlan(sampler.steps, frozenset({STEPS - 2, STEPS - 1}))
    rollout = sampler(plan=plan, generator=seeded())
    gradients = torch.autograd.grad(rollout.images.mean(), pipe.unet.conv_out.weight)
    assert float(gradients[0].norm()) > 0
    last = StepPlan(sampler.steps, frozenset({STEPS - 1}))
    assert sampler(plan=last, renoising=Renoising(copies=1), generator=seeded()).images.isfinite().all()


def test_evaluations_are_drawn_without_it(tmp_path: Any) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    plain, noisy = (
        evaluate(DifferentiableSampler(pipe, num_inference_steps=2, noise=noise), Objective({}), ["a"], [0]).images
        for noise in (0.0, 0.7)
    )
    assert torch.equal(plain, noisy)


@pytest.mark.parametrize("noise", [-0.1, 1.1, True, "much"])
def test_what_is_no_share_of_noise_is_refused(noise: Any) -> None:
    with pytest.raises(SamplerError, match=r"DifferentiableSampler.noise: it is .*; give a number from 0 to 1"):
        DifferentiableSampler(tiny_pipe(), num_inference_steps=2, noise=noise)


def test_the_noisy_steps_are_those_that_draw() -> None:
    def noisy(scheduler: Any = None, **more: Any) -> list[int]:
        pipe = tiny_pipe(scheduler)
        return sorted(DifferentiableSampler(pipe, num_inference_steps=STEPS, **embeddings(), **more).noisy_steps)

    assert noisy() == []
    assert noisy(eta=1.0) == noisy(noise=0.7) == [0, 1, 2]  # the last one leads to no noise
    assert noisy(make_scheduler(diffusers.EulerAncestralDiscreteScheduler)) == [0, 1, 2]
    assert noisy(make_scheduler(diffusers.DDIMScheduler, set_alpha_to_one=False), eta=1.0) == [0, 1, 2, 3]
    first_order = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    assert len(noisy(make_scheduler(diffusers.DPMSolverMultistepScheduler, **first_order))) >= STEPS - 1
    with pytest.raises(SamplerError, match="builds on earlier predictions"):
        noisy(make_scheduler(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"))
