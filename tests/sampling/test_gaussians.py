"""The Gaussian of a step: read off every scheduler of diffusers, against closed forms and an independent DDIM."""

from __future__ import annotations

import inspect
import math
import sys
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from draft_core.errors import SamplerError
from draft_core.sampling import seams
from draft_core.sampling.noise_levels import Gaussian, gaussian_between, step_gaussian

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 8
SHAPE = (2, 4, 4, 4)
# What `scheduler.step` is told beside prediction, timestep and latents.
FURTHER: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"eta": 1.0},
    "DDIMParallelScheduler": {"eta": 1.0},
    "TCDScheduler": {"eta": 0.5},
    "EulerDiscreteScheduler": {"s_churn": 2.0},
    "EDMEulerScheduler": {"s_churn": 2.0},
    "CogVideoXDPMScheduler": {"old_pred_original_sample": None, "timestep_back": None, "eta": 1.0},
    "RePaintScheduler": {"original_image": torch.zeros(SHAPE), "mask": torch.full(SHAPE, 0.5)},
}
CONFIGURED: dict[str, dict[str, Any]] = {
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "DPMSolverSinglestepScheduler": {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"},
    "EDMDPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
    "FlowMatchLCMScheduler": {},
}
# Schedulers that are not stepped with (model_output, timestep, sample), or not by a pipeline of continuous latents.
OTHER_STEPS = {
    "AmusedScheduler": "masked tokens",
    "BlockRefinementScheduler": "masked tokens",
    "DDPMWuerstchenScheduler": "its timesteps are ratios between 0 and 1, two for each step",
    "DiscreteDDIMScheduler": "categories",
    "EntropyBoundScheduler": "masked tokens",
    "PiflowScheduler": "its predictions are grids of velocities",
    "RFD4ProteinaScheduler": "atoms, by arguments of its own",
    "SCMScheduler": "one or two steps of a consistency model",
    "HeliosDMDScheduler": "it is given the whole schedule of a stage",
    "HeliosScheduler": "it is given stages",
    "KarrasVeScheduler": "it has two steps of its own",
    "ScoreSdeVpScheduler": "step_pred",
    "ScoreSdeVeScheduler": "step_pred and step_correct",
    "SchedulerMixin": "the base class",
    "VQDiffusionScheduler": "categories",
}
# Draws that torchsde makes.
REFUSED = {"DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"}


def schedulers() -> list[str]:
    """All of diffusers, so that a new one cannot be forgotten."""
    names = []
    for name in sorted(dir(diffusers)):
        if name.endswith("Scheduler") and not name.startswith("Flax") and name not in OTHER_STEPS:
            try:
                cls = getattr(diffusers, name)
                if inspect.isclass(cls) and issubclass(cls, SchedulerMixin):
                    names.append(name)
            except (ImportError, RuntimeError):
                continue
    return names


def worst_error(name: str) -> tuple[float, bool]:
    """Largest difference from mean + std * noise for the noise that is drawn, relative, and whether any is drawn."""
    scheduler = getattr(diffusers, name)(**CONFIGURED.get(name, {}))
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    further = dict(FURTHER.get(name, {}))
    if "generator" in inspect.signature(scheduler.step).parameters:
        further["generator"] = generator
    worst, draws = 0.0, False
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else None
        prediction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(int(abs(float(timestep)) * 100)))
        with torch.random.fork_rng():
            torch.manual_seed(1)
            call = seams.step_call(
                scheduler.step, (), {"model_output": prediction, "timestep": timestep, "sample": latents, **further}
            )
            gaussian = step_gaussian(scheduler, call)
            state = seams.scheduler_state(scheduler)
            rng = generator.get_state(), torch.get_rng_state()
            ends = []
            for scale in (1.0, 2.0):  # affine: twice the noise goes twice as far
                generator.set_state(rng[0])
                torch.set_rng_state(rng[1])
                with ScaledNoise(scheduler, scale):
                    ends.append(seams.first_of(call.run(), "prev_sample"))
                seams.restore_scheduler(scheduler, state)
            generator.set_state(rng[0])
            torch.set_rng_state(rng[1])
            after = seams.first_of(call.run(), "prev_sample")
        assert after.isfinite().all(), name  # `max` passes over what is no number
        assert gaussian.mean.isfinite().all(), name
        assert gaussian.std.isfinite().all(), name
        size = max(float(after.abs().max()), float(latents.abs().max()), 1e-3)
        worst = max(worst, float((ends[1] - 2 * ends[0] + gaussian.mean).abs().max()) / size)
        noise = (after - gaussian.mean) / gaussian.std.clamp(min=1e-12)
        if gaussian.std.max() > 0:
            draws = True
            if gaussian.std.max() > 1e-3 * size:  # else rounding is all that is left
                assert 0.5 < float(noise.std()) < 1.5, (name, float(noise.std()))
        else:
            worst = max(worst, float((after - gaussian.mean).abs().max()) / size)
        latents = after
    return worst, draws


class ScaledNoise:
    """All that a scheduler draws, times a factor."""

    def __init__(self, scheduler: Any, factor: float) -> None:
        self.module = sys.modules[type(scheduler).__module__]
        self.factor = factor
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for owner, name in ((self.module, "randn_tensor"), (torch, "randn"), (torch, "randn_like")):
            if (drawn := getattr(owner, name, None)) is not None:
                self.patch.setattr(owner, name, self._scaled(drawn))

    def _scaled(self, drawn: Any) -> Any:
        def scaled(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.patch.undo()  # `randn_tensor` calls `torch.randn`, which must not be scaled once more
            try:
                return drawn(*args, **kwargs) * self.factor
            finally:
                self.__enter__()

        return scaled

    def __exit__(self, *error: Any) -> None:
        self.patch.undo()


@pytest.mark.parametrize("name", schedulers())
def test_every_scheduler_is_affine_in_the_noise_it_draws(name: str) -> None:
    if name in REFUSED:
        pytest.skip("refused by name, see below")
    worst, draws = worst_error(name)
    assert worst < 1e-5, worst
    assert draws or name not in {*FURTHER, *CONFIGURED} - {"FlowMatchLCMScheduler"}, "it was to draw noise"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_torchsde_draws_is_refused_by_name(name: str) -> None:
    try:
        scheduler = getattr(diffusers, name)()
    except ImportError:  # it needs torchsde
        pytest.skip("torchsde is not installed")
    call = seams.StepCall(torch.zeros(1), 0, torch.zeros(1), lambda: None)
    with pytest.raises(SamplerError, match=f"{name} draws its noise from torchsde"):
        step_gaussian(scheduler, call)


def test_ddims_log_probability_is_that_of_an_independent_one() -> None:
    """Song et al. 2021, equations 12 and 16, by hand; the mean over dimensions."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # else its square roots are single precision
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    for number, timestep in enumerate(scheduler.timesteps[:-1]):
        eps = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
        arguments = {"model_output": eps, "timestep": timestep, "sample": latents, "eta": 1.0}
        gaussian = step_gaussian(scheduler, seams.step_call(scheduler.step, (), arguments))
        after = scheduler.step(**arguments, generator=generator).prev_sample
        here, there = (scheduler.alphas_cumprod[int(t)].double() for t in scheduler.timesteps[number : number + 2])
        variance = (1 - there) / (1 - here) * (1 - here / there)
        x0 = (latents.double() - (1 - here).sqrt() * eps) / here.sqrt()
        mean = there.sqrt() * x0 + (1 - there - variance).sqrt() * eps
        normal = torch.distributions.Normal(mean, variance.sqrt())
        expected = normal.log_prob(after.double()).flatten(1).mean(1)
        torch.testing.assert_close(gaussian.log_probability(after).double(), expected, rtol=1e-6, atol=1e-6)
        latents = after


def test_a_step_without_noise_has_no_log_probability() -> None:
    with pytest.raises(SamplerError, match="a step without noise has no log-probability"):
        Gaussian(torch.zeros(1, 2), torch.zeros(1, 2)).log_probability(torch.zeros(1, 2))


def test_the_gradient_of_a_log_probability_reaches_the_prediction() -> None:
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()

    def log_probability(prediction: torch.Tensor) -> torch.Tensor:
        arguments = {"model_output": prediction, "timestep": scheduler.timesteps[2], "sample": latents}
        gaussian = step_gaussian(scheduler, seams.step_call(scheduler.step, (), arguments))
        return gaussian.log_probability(latents * 0.9).sum()

    assert torch.autograd.gradcheck(log_probability, (prediction,), atol=1e-4)


# The general step


def levels(kind: str, time: float) -> tuple[torch.Tensor, torch.Tensor]:
    alpha, sigma = {
        "variance preserving": (math.cos(time), math.sin(time)),
        "variance exploding": (1.0, 10 * time),
        "flow": (1 - time, time),
    }[kind]
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["variance preserving", "variance exploding", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_general_step_keeps_the_marginal(kind: str, eta: float) -> None:
    """From x = alpha x0 + sigma eps it leads to alpha' x0 + noise of variance sigma'^2, whatever eta is."""
    here, there = levels(kind, 0.6), levels(kind, 0.4)
    x0 = torch.full((1, 200_000), 0.3, dtype=torch.float64)
    noise = torch.Generator().manual_seed(0)
    latents = here[0] * x0 + here[1] * torch.randn(x0.shape, generator=noise, dtype=torch.float64)
    gaussian = gaussian_between(latents, x0, here, there, eta)
    after = gaussian.mean + gaussian.std * torch.randn(x0.shape, generator=noise, dtype=torch.float64)
    assert abs(float(after.mean()) - float(there[0]) * 0.3) < 0.02 * float(there[1])
    assert abs(float(after.std()) / float(there[1]) - 1) < 0.01
    assert bool(gaussian.std.any()) == (eta > 0)


def test_the_general_step_is_ddims_euler_ancestrals_and_flow_eulers() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, prediction = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    ddim = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    ddim.set_timesteps(STEPS)
    arguments = {"model_output": prediction, "timestep": ddim.timesteps[2], "sample": latents, "eta": 1.0}
    theirs = step_gaussian(ddim, seams.step_call(ddim.step, (), arguments))
    here, there = (ddim.alphas_cumprod[int(t)] for t in ddim.timesteps[2:4])
    x0 = (latents - (1 - here).sqrt() * prediction) / here.sqrt()
    ours = gaussian_between(latents, x0, (here.sqrt(), (1 - here).sqrt()), (there.sqrt(), (1 - there).sqrt()), 1.0)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.std, theirs.std, rtol=1e-5, atol=2e-6)

    one = torch.ones(())
    euler = diffusers.EulerAncestralDiscreteScheduler()
    euler.set_timesteps(STEPS)
    latents = latents * float(euler.init_noise_sigma)
    timestep = euler.timesteps[2]
    euler.scale_model_input(latents, timestep)
    arguments = {"model_output": prediction, "timestep": timestep, "sample": latents}
    theirs = step_gaussian(euler, seams.step_call(euler.step, (), arguments))
    sigma, below = euler.sigmas[2], euler.sigmas[3]
    ours = gaussian_between(latents, latents - sigma * prediction, (one, sigma), (one, below), 1.0)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.std, theirs.std, rtol=1e-5, atol=1e-5)

    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(STEPS)
    arguments = {"model_output": prediction, "timestep": flow.timesteps[2], "sample": latents}
    after = flow.step(**arguments).prev_sample
    sigma, below = flow.sigmas[2], flow.sigmas[3]
    ours = gaussian_between(latents, latents - sigma * prediction, (1 - sigma, sigma), (1 - below, below), 0.0)
    torch.testing.assert_close(ours.mean, after, rtol=1e-5, atol=1e-5)
    assert not ours.std.any()
