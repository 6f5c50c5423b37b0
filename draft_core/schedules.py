"""What a scheduler's step means: its noise level, x0 brought back to it, and the x0 that a prediction points at.

One rule for all schedulers, read off their own `add_noise` or `scale_noise`. Tensors wing. May import: errors.
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
            f"{type(scheduler).__name__} cannot add noise", where="scheduler", next="use another scheduler or estimator"
        )
    return noisy


def noise_level(scheduler: Any, timestep: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma) of x_t = alpha x0 + sigma eps, in the scale of the latents that `step` sees; each (1, 1, ...)."""
    one = torch.ones((1,) * like.ndim, dtype=like.dtype, device=like.device)
    zero = torch.zeros_like(one)
    return renoised(scheduler, one, timestep, zero), renoised(scheduler, zero, timestep, one)


def posterior_mean(scheduler: Any, prediction: torch.Tensor, timestep: Any, latents: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t], shaped like `latents`, as the denoiser's `prediction` at `timestep` says.

    With x_t = alpha x0 + sigma eps: (x_t - sigma eps) / alpha for a prediction of eps; for one of v, after scaling
    to alpha^2 + sigma^2 = 1, alpha x_t - sigma v (Salimans and Ho 2022, appendix D); x_t - sigma v for a flow.

    Raises:
        SamplerError: if the scheduler's prediction type is none of these.
    """
    if prediction.ndim > 1 and prediction.shape[1] == 2 * latents.shape[1]:  # it also predicts a variance
        prediction = prediction.chunk(2, dim=1)[0]
    alpha, sigma = noise_level(scheduler, timestep, latents)
    kind = getattr(scheduler.config, "prediction_type", None) or "flow"
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
        next="use an estimator that runs the whole chain",
    )
