"""Methods whose gradient is not that of a part of the chain, against their papers' constructions by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, DRTune, FlowBPSparse, Refl, StepPlan
from draft_core.sampling.seams import replaced
from tests.support.drive import parameters, seeded
from tests.support.families import sd3
from tests.support.tiny import embeddings, make_scheduler, tiny_pipe

STEPS = 4
GUIDANCE = 3.0
PROMPTS = ["a cat"]


@pytest.fixture
def flow() -> Any:
    """A sampler of a flow-matching Euler chain in float64, and what its transformer saw, call by call."""
    pipe = sd3()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.double().eval()
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=16, width=16)
    assert sampler.steps == STEPS
    calls: list[dict[str, Any]] = []

    def watch(forward: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return forward(*args, **kwargs)

    with replaced(pipe.transformer, "forward", watch):
        yield sampler, calls


def gradients(images: torch.Tensor, pipe: Any) -> torch.Tensor:
    slope = torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)
    grads = torch.autograd.grad(
        (images.square() * slope).sum(), parameters(pipe), allow_unused=True, materialize_grads=True
    )
    return torch.cat([grad.flatten() for grad in grads])


def guided(prediction: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance over a batch of negative and positive prompts."""
    negative, positive = prediction.chunk(2)
    return negative + GUIDANCE * (positive - negative)


def decoded(pipe: Any, x0: torch.Tensor) -> torch.Tensor:
    latents = x0 / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    return pipe.image_processor.postprocess(pipe.vae.decode(latents, return_dict=False)[0], output_type="pt")


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_flowbp_sparse_is_the_sum_of_reforwarded_velocities_on_the_cached_trajectory(flow: Any, k: int) -> None:
    """Wang et al. 2026: roll out without gradient, run the active set again, x0 = x_T + sum_t dt_t v_t."""
    sampler, calls = flow
    pipe = sampler.pipe
    plan = FlowBPSparse(k=k).plan(STEPS, Random(1))
    with torch.no_grad():
        sampler(PROMPTS, plan=StepPlan(STEPS, frozenset()), generator=seeded())
    cached = [dict(call) for call in calls[:STEPS]]
    x0 = cached[0]["hidden_states"][:1]  # x_T; guidance doubles the batch
    sigmas = pipe.scheduler.sigmas.double()
    for step, call in enumerate(cached):
        with torch.set_grad_enabled(step in plan.grad_steps):
            velocity = guided(pipe.transformer(**call)[0])
        x0 = x0 + (sigmas[step + 1] - sigmas[step]) * velocity
    expected = decoded(pipe, x0)
    found = sampler(PROMPTS, plan=plan, generator=seeded()).images
    # the scheduler steps in float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(found, pipe), gradients(expected, pipe), rtol=1e-4, atol=1e-5)


def test_drtune_stops_early_with_the_posterior_mean_of_the_flow(flow: Any) -> None:
    """Wu et al. 2024, algorithm 1: stop-gradient on every input, one prediction of x0 at the stop."""
    sampler, calls = flow
    pipe = sampler.pipe
    plan = StepPlan(STEPS, frozenset({0, 2}), detach_input=True, stop_at=2)
    with torch.no_grad():
        sampler(PROMPTS, plan=StepPlan(STEPS, frozenset()), generator=seeded())
    cached = [dict(call) for call in calls[:3]]
    sigmas = pipe.scheduler.sigmas.double()
    latents = cached[0]["hidden_states"][:1]
    for step, call in enumerate(cached):
        with torch.set_grad_enabled(step in plan.grad_steps):
            velocity = guided(pipe.transformer(**call)[0])
        reached = 0.0 if step == plan.stop_at else sigmas[step + 1]  # at the stop, all the way to x0
        latents = latents + (reached - sigmas[step]) * velocity
    expected = decoded(pipe, latents)
    found = sampler(PROMPTS, plan=plan, generator=seeded()).images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(found, pipe), gradients(expected, pipe), rtol=1e-4, atol=1e-5)


def test_after_an_early_stop_the_denoiser_is_not_called_again(flow: Any) -> None:
    sampler, calls = flow
    sampler(PROMPTS, plan=StepPlan(STEPS, frozenset({1}), stop_at=1), generator=seeded())
    assert len(calls) == 2


def test_refl_of_one_late_step_is_draft_1_where_the_last_step_lands_on_x0() -> None:
    pipe = tiny_pipe(make_scheduler(type(tiny_pipe().scheduler), set_alpha_to_one=True))
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **embeddings())
    rollouts = [
        sampler(plan=method.plan(STEPS, Random(0)), generator=seeded()) for method in (Refl(last=1), DraftK(k=1))
    ]
    assert torch.equal(rollouts[0].images, rollouts[1].images)
    assert torch.equal(*[gradients(rollout.images, pipe) for rollout in rollouts])


def test_with_every_step_and_no_early_stop_drtune_is_flowbp(flow: Any) -> None:
    assert (
        DRTune(k=STEPS, last=1).plan(STEPS, Random(0)).grad_steps
        == FlowBPSparse(k=STEPS).plan(STEPS, Random(0)).grad_steps
    )
    sampler, _ = flow
    one = sampler(PROMPTS, plan=DRTune(k=STEPS, last=1).plan(STEPS, Random(0)), generator=seeded()).images
    other = sampler(PROMPTS, plan=FlowBPSparse(k=STEPS).plan(STEPS, Random(0)), generator=seeded()).images
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(one, sampler.pipe), gradients(other, sampler.pipe), rtol=1e-4, atol=1e-5)
