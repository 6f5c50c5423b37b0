"""`output.gaussian(eta=...)`: the general step with noise, between the levels of a scheduler that draws none."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler, StepPlan
from draft_core.errors import SamplerError
from draft_core.sampling import seams
from draft_core.sampling.rollout import StepOutput
from tests.support.drive import seeded
from tests.support.tiny import embeddings, make_scheduler, tiny_pipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 8
SHAPE = (2, 4, 4, 4)


def step_of(scheduler: Any, number: int, **further: Any) -> tuple[StepOutput, dict[str, Any]]:
    """A first-order step in the midst of a schedule, and its arguments."""
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    prediction = torch.randn(SHAPE, generator=generator)
    scheduler.set_begin_index(number) if hasattr(scheduler, "set_begin_index") else None
    timestep = scheduler.timesteps[number]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(latents, timestep)
    arguments = {"model_output": prediction, "timestep": timestep, "sample": latents, **further}
    return StepOutput(scheduler, number, seams.step_call(scheduler.step, (), arguments)), arguments


def first_order() -> list[Any]:
    ddim = [
        diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=one, prediction_type=kind)
        for one, kind in [(False, "epsilon"), (True, "v_prediction"), (True, "sample")]
    ]
    euler = diffusers.EulerDiscreteScheduler()
    flow = [diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted) for inverted in (False, True)]
    return [*ddim, euler, *flow]


@pytest.mark.parametrize("scheduler", first_order(), ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("number", [0, 3, STEPS - 1])
def test_with_eta_zero_it_is_the_schedulers_own_step(scheduler: Any, number: int) -> None:
    output, arguments = step_of(scheduler, number)
    gaussian = output.gaussian(eta=0.0)
    expected = scheduler.step(**arguments).prev_sample
    size = float(arguments["sample"].abs().max())
    torch.testing.assert_close(gaussian.mean / size, expected / size, rtol=1e-5, atol=2e-6)
    assert not gaussian.std.any()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_it_is_ddim_with_that_eta(kind: str, eta: float) -> None:
    """DDIM's own step with eta, in double precision, to 1e-6; and the formula of its paper, equations 12 and 16."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type=kind)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(STEPS)
    for number in (0, 3, STEPS - 2):
        output, _ = step_of(scheduler, number)
        general = output.gaussian(eta=eta)
        theirs = step_of(scheduler, number, eta=eta)[0].gaussian()
        torch.testing.assert_close(general.mean, theirs.mean, rtol=1e-6, atol=1e-6, check_dtype=False)
        torch.testing.assert_close(general.std, theirs.std, rtol=1e-5, atol=2e-6, check_dtype=False)
        here, there = (scheduler.alphas_cumprod[int(t)] for t in scheduler.timesteps[number : number + 2])
        variance = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
        assert float(general.std.max()) == pytest.approx(float(variance.sqrt()), rel=1e-5)


def test_it_is_the_ancestral_euler_step_with_eta_one() -> None:
    general = step_of(diffusers.EulerDiscreteScheduler(), 3)[0].gaussian(eta=1.0)
    theirs = step_of(diffusers.EulerAncestralDiscreteScheduler(), 3)[0].gaussian()
    size = float(theirs.mean.abs().max())
    torch.testing.assert_close(general.mean / size, theirs.mean / size, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(general.std, theirs.std, rtol=1e-4, atol=1e-5)


def test_the_scheduler_is_left_as_it_was() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    output, arguments = step_of(scheduler, 2)
    expected = step_of(diffusers.EulerDiscreteScheduler(), 2)[1]
    output.gaussian(eta=1.0)
    after = scheduler.step(**arguments).prev_sample
    fresh = diffusers.EulerDiscreteScheduler()
    step_of(fresh, 2)
    assert torch.equal(after, fresh.step(**expected).prev_sample)


def test_a_visit_reads_it_with_gradient_through_a_pipelines_call() -> None:
    pipe = tiny_pipe(make_scheduler(diffusers.DDIMScheduler))
    pipe.unet.requires_grad_(True)
    sampler = DifferentiableSampler(pipe, num_inference_steps=4, guidance_scale=3.0, **embeddings())
    with torch.no_grad():
        rollout = sampler(plan=StepPlan(4, frozenset(), keep_trajectory=True), generator=seeded())
    record = rollout.trajectory[1]
    seen: list[float] = []

    def visit(output: StepOutput) -> None:
        gaussian = output.gaussian(eta=1.0)
        gaussian.log_probability(record.after).sum().backward()
        seen.append(float(gaussian.std.min()))
        plain = output.gaussian(eta=0.0).mean.detach()
        torch.testing.assert_close(plain, record.after, rtol=1e-5, atol=1e-5)

    sampler.replay(rollout, {1: record.before}, visit)
    assert seen[0] > 0
    assert any(weight.grad is not None and bool(weight.grad.any()) for weight in pipe.unet.parameters())


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "1", True])
def test_an_eta_that_is_no_share_is_refused(eta: Any) -> None:
    with pytest.raises(SamplerError, match="give a number from 0 to 1"):
        step_of(diffusers.EulerDiscreteScheduler(), 2)[0].gaussian(eta=eta)


def test_a_scheduler_that_draws_noise_itself_is_refused() -> None:
    with pytest.raises(SamplerError, match="DDPMScheduler draws noise of its own in this step; use `gaussian\\(\\)`"):
        step_of(diffusers.DDPMScheduler(clip_sample=False), 2)[0].gaussian(eta=1.0)


def test_a_step_that_builds_on_earlier_ones_is_refused() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator)
    for timestep in scheduler.timesteps[:2]:
        latents = scheduler.step(torch.randn(SHAPE, generator=generator), timestep, latents).prev_sample
    arguments = {"model_output": latents * 0.5, "timestep": scheduler.timesteps[2], "sample": latents}
    output = StepOutput(scheduler, 2, seams.step_call(scheduler.step, (), arguments))
    with pytest.raises(SamplerError, match="none between two noise levels"):
        output.gaussian(eta=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_is_no_other_kind_of_step(value: float) -> None:
    output, arguments = step_of(diffusers.DDIMScheduler(clip_sample=False), 3)
    arguments["model_output"][0, 0, 0, 0] = value
    gaussian = output.gaussian(eta=0.7)
    assert not gaussian.mean[0].isfinite().all()
    assert gaussian.mean[1].isfinite().all()
    scores = gaussian.log_probability(arguments["sample"])
    assert scores.isfinite().tolist() == [False, True]


def test_a_step_of_the_scheduler_whose_prediction_is_not_finite_has_a_log_probability_that_is_not() -> None:
    output, arguments = step_of(diffusers.DDIMScheduler(clip_sample=False), 3, eta=1.0)
    arguments["model_output"][0] = float("nan")
    assert output.gaussian().log_probability(arguments["sample"]).isfinite().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheduler", first_order(), ids=lambda one: type(one).__name__)
def test_half_precision_keeps_the_last_levels(scheduler: Any, dtype: torch.dtype) -> None:
    """Where alpha is 1 to half precision, sigma is not 0: all is as float32 says of the same numbers."""
    for number in (0, STEPS - 1):
        _, arguments = step_of(scheduler, number)
        half = {name: arguments[name].to(dtype) for name in ("sample", "model_output")}
        found, expected = (
            StepOutput(scheduler, number, seams.step_call(scheduler.step, (), {**arguments, **given}))
            for given in (half, {name: value.float() for name, value in half.items()})
        )
        for name in ("mean", "std"):
            values = getattr(found.gaussian(eta=0.7), name)
            torch.testing.assert_close(values, getattr(expected.gaussian(eta=0.7), name), rtol=1e-5, atol=1e-5)
        x0 = half["model_output"]
        size = float(expected.prediction_for(x0.float()).abs().max())
        torch.testing.assert_close(
            found.prediction_for(x0).float() / size, expected.prediction_for(x0.float()) / size, rtol=1e-2, atol=1e-2
        )
        assert found.prediction_for(x0).dtype == found.posterior_mean().dtype == dtype
