"""What a scheduler's step means: its noise level, x0 brought back to it, and the x0 that a prediction points at.

One rule for all schedulers, read off their own `add_noise` or `scale_noise`.
"""

from __future__ import annotations

from typing import Any

import torch

from draft_core.errors import SamplerError

# Families whose prediction is the flow's velocity, noise - x0, say it by these names or by having `scale_noise`.
FLOW = ("flow_prediction", "flow")


def renoised(scheduler: Any, x0: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
    """alpha x0 + sigma eps, like `x0`, at the noise level of `timestep` in the scheduler's present state.

    Raises:
        SamplerError: if the scheduler cannot add noise.
    """
    timesteps = torch.as_tensor(timestep, device=x0.device).reshape(-1).expand(len(x0))
    if hasattr(scheduler, "scale_noise"):
        noisy: torch.Tensor = scheduler.scale_noise(x0, timesteps, noise)
    elif hasattr(scheduler, "add_noise"):
        noisy = scheduler.add_noise(x0, noise, timesteps)
    else:
        raise SamplerError(
            f"{type(scheduler).__name__} cannot add noise", where="scheduler", next="use another scheduler or method"
        )
    return noisy


def noise_level(scheduler: Any, timestep: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma) of x_t = alpha x0 + sigma eps, in the scale of the latents that `step` sees; each (1, 1, ...)."""
    one = torch.ones((1,) * like.ndim, dtype=like.dtype, device=like.device)
    zero = torch.zeros_like(one)
    if not getattr(scheduler, "state_in_first_order", True) and hasattr(scheduler, "scale_model_input"):
        # half-way to the next level, which `add_noise` does not know: its scale is (1 + sigma^2)^(-1/2)
        scale = scheduler.scale_model_input(one, timestep)
        return one, (scale**-2 - 1).clamp(min=0).sqrt()
    return renoised(scheduler, one, timestep, zero), renoised(scheduler, zero, timestep, one)


def posterior_mean(scheduler: Any, prediction: torch.Tensor, timestep: Any, latents: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t], shaped like `latents`, as the denoiser's `prediction` at `timestep` says.

    With x_t = alpha x0 + sigma eps: (x_t - sigma eps) / alpha for a prediction of eps; for one of v, after scaling
    to alpha^2 + sigma^2 = 1, alpha x_t - sigma v (Salimans and Ho 2022, appendix D); x_t - sigma v for a flow; a
    scheduler that knows its model's preconditioning is asked. Bounds on x0 are those of the scheduler.

    Raises:
        SamplerError: if the scheduler's prediction type is none of these.
    """
    if prediction.ndim > 1 and prediction.shape[1] == 2 * latents.shape[1]:  # it also predicts a variance
        prediction = prediction.chunk(2, dim=1)[0]
    alpha, sigma = noise_level(scheduler, timestep, latents)
    if hasattr(scheduler, "precondition_outputs"):  # of EDM: Karras et al. 2022, equation 7
        mean: torch.Tensor = scheduler.precondition_outputs(latents, prediction, sigma)
        return mean
    return _limited(scheduler, _unlimited_mean(scheduler, prediction, alpha, sigma, latents))


def _unlimited_mean(
    scheduler: Any, prediction: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, latents: torch.Tensor
) -> torch.Tensor:
    kind = getattr(scheduler.config, "prediction_type", None)
    if hasattr(scheduler, "scale_noise") or kind in FLOW:
        return latents - sigma * prediction
    if kind == "epsilon":
        return (latents - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        scale = (alpha.square() + sigma.square()).sqrt()
        return (alpha / scale) * (latents / scale) - (sigma / scale) * prediction
    raise SamplerError(
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
