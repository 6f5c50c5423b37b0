"""What a scheduler's step means: its noise level, its Gaussian, and the x0 that a prediction points at.

One rule for all schedulers, read off their own `add_noise` or `scale_noise`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from draft_core.errors import SamplerError
from draft_core.sampling.randomness import drawn_by
from draft_core.sampling.seams import StepCall, first_of, restore_scheduler, scheduler_state

# Families whose prediction is the flow's velocity, noise - x0, say it by these names or by having `scale_noise`.
FLOW = ("flow_prediction", "flow")

# In units of its deviation, how far from the mean a step is looked at: a power of two, and so large that the difference
# is not lost in the rounding of the mean.
FAR = 256.0


def renoised(scheduler: Any, x0: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
    """alpha x0 + sigma eps, like `x0`, at the noise level of `timestep` in the scheduler's present state.

    Raises:
        SamplerError: if the scheduler cannot add noise.
    """
    timesteps = _one(timestep).to(x0.device).expand(len(x0))
    if hasattr(scheduler, "scale_noise"):
        # `scale_noise` weighs by the sigmas as they stand, and inverted ones grow with x0
        ends = (noise, x0) if _is_inverted(scheduler) else (x0, noise)
        noisy: torch.Tensor = scheduler.scale_noise(ends[0], timesteps, ends[1])
    elif hasattr(scheduler, "add_noise"):
        noisy = scheduler.add_noise(x0, noise, timesteps)
    else:
        raise SamplerError(
            f"{type(scheduler).__name__} cannot add noise", where="scheduler", next="use another scheduler or method"
        )
    return noisy


def _one(timestep: Any) -> torch.Tensor:
    """The timestep of a batch, (1,), which some calls give once for each of its items."""
    timesteps = torch.as_tensor(timestep).reshape(-1)
    if bool((timesteps != timesteps[0]).any()):
        raise SamplerError(
            "its items are at timesteps of their own, so that their noise level is not one",
            where="scheduler",
            next="use a method that runs the whole chain",
        )
    return timesteps[:1]


def _is_inverted(scheduler: Any) -> bool:
    """Whether sigma goes from 0 to 1 and the prediction is x0 - noise, as in Mochi and OmniGen."""
    return bool(getattr(getattr(scheduler, "config", None), "invert_sigmas", False))


def check_told(scheduler: Any, told: tuple[str, ...]) -> None:
    """Refuses steps whose prediction and latents may mean something else than the scheduler's levels say.

    Raises:
        SamplerError: naming the first argument of the step that is not known.
    """
    if told:
        raise SamplerError(
            f"its step is told {told[0]}, under which noise level and posterior mean are not known",
            where=type(scheduler).__name__,
            next="use a method that runs the whole chain, without early stops and re-noising",
        )


def noise_level(scheduler: Any, timestep: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma) of x_t = alpha x0 + sigma eps, in the scale of the latents that `step` sees; each (1, 1, ...).

    In float32 at least: in half precision an alpha near 1 is 1, and its sigma is lost.
    """
    one = torch.ones((1,) * like.ndim, dtype=_precise(like), device=like.device)
    zero = torch.zeros_like(one)
    if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "scale_model_input"):
        # half-way to the next level, which `add_noise` does not know: its scale is (1 + sigma^2)^(-1/2)
        scale = scheduler.scale_model_input(one, timestep)
        return one, (scale**-2 - 1).clamp(min=0).sqrt()
    return renoised(scheduler, one, timestep, zero), renoised(scheduler, zero, timestep, one)


def _precise(like: torch.Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


def posterior_mean(scheduler: Any, prediction: torch.Tensor, timestep: Any, latents: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t], shaped like `latents`, as the denoiser's `prediction` at `timestep` says.

    With x_t = alpha x0 + sigma eps: (x_t - sigma eps) / alpha for a prediction of eps; for one of v, after scaling
    to alpha^2 + sigma^2 = 1, alpha x_t - sigma v (Salimans and Ho 2022, appendix D); x_t - sigma v for a flow, and
    x_t + sigma v for one whose sigmas are inverted; a scheduler that knows its model's preconditioning is asked.
    Bounds on x0 are those of the scheduler.

    Raises:
        SamplerError: if the scheduler's prediction type is none of these.
    """
    if prediction.ndim > 1 and prediction.shape[1] == 2 * latents.shape[1]:  # it also predicts a variance
        prediction = prediction.chunk(2, dim=1)[0]
    alpha, sigma = noise_level(scheduler, timestep, latents)
    if hasattr(scheduler, "precondition_outputs"):  # of EDM: Karras et al. 2022, equation 7
        mean: torch.Tensor = scheduler.precondition_outputs(latents, prediction, sigma)
        return mean.to(latents.dtype)
    return _limited(scheduler, _unlimited_mean(scheduler, prediction, alpha, sigma, latents).to(latents.dtype))


def _unlimited_mean(
    scheduler: Any, prediction: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, latents: torch.Tensor
) -> torch.Tensor:
    kind = getattr(scheduler.config, "prediction_type", None)
    if _is_inverted(scheduler):
        return latents + sigma * prediction
    if hasattr(scheduler, "scale_noise") or kind in FLOW:
        return latents - sigma * prediction
    if kind == "epsilon":
        return (latents - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        scale = (alpha.square() + sigma.square()).sqrt()
        return (alpha / scale) * (latents / scale) - (sigma / scale) * prediction
    raise _unknown(scheduler, kind)


def _unknown(scheduler: Any, kind: Any) -> SamplerError:
    return SamplerError(
        f"{type(scheduler).__name__} predicts {kind!r}, of which the posterior mean is not known",
        where="scheduler",
        next="use a method that runs the whole chain",
    )


def _limited(scheduler: Any, mean: torch.Tensor) -> torch.Tensor:
    """Pixel models bound their x0; latent ones switch both off."""
    if getattr(scheduler.config, "thresholding", False):
        bounded: torch.Tensor = scheduler._threshold_sample(mean)
        return bounded
    if getattr(scheduler.config, "clip_sample", False):
        return mean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return mean


# The Gaussian of a step


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution with independent components.

    Arguments:
        mean: shaped like the latents, with gradient where the prediction has one.
        std: shaped like the latents; zero of a deterministic step.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def log_probability(self, sample: torch.Tensor) -> torch.Tensor:
        """The mean over dimensions of log N(sample; mean, std), (B,).

        The mean and not the sum, whose ratios overflow at once; multiply by the number of dimensions for densities.

        Raises:
            SamplerError: if the step is deterministic.
        """
        if bool((self.std <= 0).any()):  # NaN, of a prediction that is not finite, stays NaN
            raise SamplerError(
                "a step without noise has no log-probability",
                where="scheduler",
                next="use a scheduler that draws noise (eta: 1 for DDIM, stochastic_sampling for flow Euler), or "
                "`output.gaussian(eta=1.0)`",
            )
        z = (sample - self.mean) / self.std
        return (-0.5 * (z.square() + math.log(2 * math.pi)) - self.std.log()).flatten(1).mean(1)


def step_gaussian(scheduler: Any, call: StepCall) -> Gaussian:
    """The distribution of the latents after a step, as the scheduler itself describes it.

    Its own step with its noise set to 0 gives the mean; with noise n the mean plus n standard deviations, since every
    step of diffusers is affine in the noise it draws. The scheduler is afterwards as it was before.

    Raises:
        SamplerError: if it draws its noise elsewhere (torchsde's Brownian trees).
    """
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "BrownianTreeNoiseSampler"):
        raise SamplerError(
            f"{type(scheduler).__name__} draws its noise from torchsde, where it cannot be replaced",
            where="scheduler",
            next="use another stochastic scheduler (DDPM, DDIM with eta, Euler ancestral, DPMSolver with sde-)",
        )
    before = scheduler_state(scheduler)
    ends = []
    for value in (0.0, FAR):
        with _noise_of(module, value):
            ends.append(first_of(call.run(), "prev_sample"))
        restore_scheduler(scheduler, before)
    return Gaussian(ends[0], ((ends[1] - ends[0]) / FAR).detach())


@contextmanager
def _noise_of(module: Any, value: float) -> Iterator[None]:
    """Every draw of normal noise in a scheduler's module gives this value, to the calling thread."""

    def drawn(shape: Any, *args: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.full(tuple(shape), value, dtype=dtype, device=device)

    def drawn_like(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full_like(tensor, value)

    def drawn_sizes(*sizes: Any, **kwargs: Any) -> torch.Tensor:
        return drawn(sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes, **kwargs)

    with ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            stack.enter_context(drawn_by(module, "randn_tensor", lambda _: drawn))
        stack.enter_context(drawn_by(torch, "randn_like", lambda _: drawn_like))
        stack.enter_context(drawn_by(torch, "randn", lambda _: drawn_sizes))
        yield


def gaussian_between(
    latents: torch.Tensor,
    x0: torch.Tensor,
    here: tuple[torch.Tensor, torch.Tensor],
    there: tuple[torch.Tensor, torch.Tensor],
    eta: float,
) -> Gaussian:
    """One general step from one noise level to a lower one, for schedulers that draw no noise of their own.

    With x = alpha x0 + sigma eps the step draws N(alpha' x0 + sqrt(sigma'^2 - s^2) eps, s^2), where
    s = eta sigma'/sigma sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2): DDIM's step for alpha^2 + sigma^2 = 1 (Song et al.
    2021, arXiv 2010.02502, equation 12), the ancestral Euler step for alpha = 1 and eta = 1, flow Euler for eta = 0.

    Arguments:
        latents: (B, ...) at the level `here`.
        x0: the posterior mean, shaped like the latents.
        here, there: (alpha, sigma) of each level, as `noise_level` gives them.
        eta: 0 draws no noise, 1 as much as the ancestral step.
    """
    (alpha, sigma), (next_alpha, next_sigma) = here, there
    eps = (latents - alpha * x0) / sigma
    lost = (sigma.square() - (alpha / next_alpha).square() * next_sigma.square()).clamp(min=0)
    std = eta * next_sigma / sigma * lost.sqrt()
    mean = next_alpha * x0 + (next_sigma.square() - std.square()).clamp(min=0).sqrt() * eps
    return Gaussian(mean, std.expand(mean.shape))


def general_step(scheduler: Any, call: StepCall, eta: float) -> Gaussian:
    """`gaussian_between` from the level of a step to that after it, both read off a scheduler that draws no noise.

    Mean and deviation are in float32 at least.

    The level after the step, (alpha', sigma'), is what the scheduler's own step makes of alpha with the prediction that
    says x0 = 1 and eps = 0, and of sigma with the one that says x0 = 0 and eps = 1.

    Raises:
        SamplerError: if `eta` is outside 0..1, the scheduler draws noise, or its step is not of this kind.
    """
    check_eta(eta, where="gaussian")
    call = _precise_call(call)
    own = step_gaussian(scheduler, call)
    if bool((own.std > 0).any()):
        raise SamplerError(
            f"{type(scheduler).__name__} draws noise of its own in this step",
            where="scheduler",
            next="use `gaussian()`, without eta; leave out model.noise",
        )
    latents, before = call.sample, scheduler_state(scheduler)
    alpha, sigma = noise_level(scheduler, call.timestep, latents)
    x0 = posterior_mean(scheduler, call.model_output, call.timestep, latents)
    there = []
    for clean, noisy in ((1.0, 0.0), (0.0, 1.0)):
        sample = (alpha * clean + sigma * noisy).expand_as(latents).contiguous()
        prediction = prediction_of(scheduler, alpha, sigma, alpha.new_tensor(clean), alpha.new_tensor(noisy))
        prediction = prediction.expand_as(call.model_output).contiguous()
        there.append(first_of(call.run(sample=sample, model_output=prediction), "prev_sample").detach())
        restore_scheduler(scheduler, before)
    plain = gaussian_between(latents, x0, (alpha, sigma), (there[0], there[1]), 0.0)
    size = torch.finfo(latents.dtype).eps ** 0.5 * float(latents.detach().abs().max())
    # Of a prediction that is not finite nothing can be compared; nor are the images, of which that is said.
    if bool(own.mean.isfinite().all()) and not bool((plain.mean - own.mean).detach().abs().max() <= size):
        raise SamplerError(
            f"this step of {type(scheduler).__name__} is none between two noise levels: it builds on earlier ones, or "
            "bounds x0",
            where="scheduler",
            next="use a scheduler of first order without memory (DDIM, Euler, flow Euler), or leave out the noise",
        )
    return gaussian_between(latents, x0, (alpha, sigma), (there[0], there[1]), float(eta))


def _precise_call(call: StepCall) -> StepCall:
    """The call with latents and prediction in float32 at least."""
    given = {name: getattr(call, name).to(_precise(call.sample)) for name in ("sample", "model_output")}
    return replace(call, **given, run=lambda **other: call.run(**{**given, **other}))


def prediction_of(
    scheduler: Any, alpha: torch.Tensor, sigma: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """The prediction that says that alpha x0 + sigma eps is made of this x0 and this eps, shaped like them.

    Raises:
        SamplerError: if what the scheduler's denoiser predicts is not known.
    """
    if hasattr(scheduler, "precondition_outputs"):
        raise SamplerError(
            f"{type(scheduler).__name__} scales what its denoiser predicts by a rule of its own",
            where="scheduler",
            next="use another scheduler",
        )
    kind = getattr(scheduler.config, "prediction_type", None)
    if _is_inverted(scheduler):
        return x0 - eps
    if hasattr(scheduler, "scale_noise") or kind in FLOW:
        return eps - x0
    if kind == "v_prediction":
        return (alpha * eps - sigma * x0) / (alpha.square() + sigma.square()).sqrt()
    if kind in ("sample", "epsilon"):
        return x0 if kind == "sample" else eps
    raise _unknown(scheduler, kind)


def check_eta(eta: Any, *, where: str) -> None:
    """Refuses what is no number from 0 to 1.

    Raises:
        SamplerError: with what it is.
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
        raise SamplerError(f"it is {eta!r}", where=where, next="give a number from 0 to 1")


def gaussian_of(scheduler: Any, call: StepCall, noise: float) -> Gaussian:
    """The distribution of the latents after a step: the scheduler's own, or with `noise` the general step's."""
    return general_step(scheduler, call, noise) if noise else step_gaussian(scheduler, call)
