"""Every scheduler that diffusers offers for these pipelines, with its noise level told a second way.

The levels come from the published arrays, `alphas_cumprod` and `sigmas`, and know nothing of
`draft_core.sampling.noise_levels`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import diffusers
import torch

Level = tuple[torch.Tensor, torch.Tensor]  # alpha and sigma of x = alpha x0 + sigma eps


def discrete(scheduler: Any, step: int) -> Level:
    """x at a timestep, of variance 1."""
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[step].long()].double()
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def preserving(scheduler: Any, step: int) -> Level:
    """x of variance 1, at sigma / alpha from an array."""
    ratio = scheduler.sigmas[step].double()
    return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()


def exploding(scheduler: Any, step: int) -> Level:
    """x is x0 and sigma eps."""
    return torch.ones((), dtype=torch.float64), scheduler.sigmas[step].double()


def interpolated(scheduler: Any, step: int) -> Level:
    """Like `exploding`, with every second step half-way to the next."""
    sigma = (scheduler.sigmas_interpol if step % 2 else scheduler.sigmas)[step]
    return torch.ones((), dtype=torch.float64), sigma.double()


def interpolated_behind(scheduler: Any, step: int) -> Level:
    """Like `interpolated`, the array one place behind."""
    sigma = scheduler.sigmas_interpol[step - 1] if step % 2 else scheduler.sigmas[step]
    return torch.ones((), dtype=torch.float64), sigma.double()


def geometric(scheduler: Any, step: int) -> Level:
    """Like `exploding`, every second step at the geometric mean of two sigmas."""
    sigmas = scheduler.sigmas.double()
    sigma = (sigmas[step - 1] * sigmas[step]).sqrt() if step % 2 else sigmas[step]
    return torch.ones((), dtype=torch.float64), sigma


def flow(scheduler: Any, step: int) -> Level:
    sigma = scheduler.sigmas[step].double()
    return 1 - sigma, sigma


def inverted(scheduler: Any, step: int) -> Level:
    """Like `flow`, with a sigma that grows with x0."""
    sigma = scheduler.sigmas[step].double()
    return sigma, 1 - sigma


@dataclass(frozen=True)
class Schedule:
    """A scheduler as some family configures it.

    Arguments:
        name: of the class, and what distinguishes it.
        level: the noise level at a step; None where only samples and gradients are checked.
        config: of the scheduler.
        predicts: what the denoiser predicts: epsilon, v, x0, flow, inverted flow, edm.
        order: of the solver.
        noisy_end: whether its last step adds noise of its own.
        refuses: what it refuses, for the table.
        needs: a package.
    """

    name: str
    level: Callable[[Any, int], Level] | None
    config: dict[str, Any] = field(default_factory=dict)
    predicts: str = "epsilon"
    order: str = "1"
    noisy_end: bool = False
    refuses: str = ""
    needs: str | None = None

    @property
    def class_name(self) -> str:
        return self.name.split(",")[0]

    def make(self) -> Any:
        cls = getattr(diffusers, self.class_name)
        known = inspect.signature(cls).parameters
        return cls(**{name: value for name, value in self.config.items() if name in known})

    @property
    def missing(self) -> str:
        """Why it cannot be tried here; empty where it can."""
        if not hasattr(diffusers, self.class_name):
            return f"no {self.class_name}"
        return f"no {self.needs}" if self.needs and find_spec(self.needs) is None else ""


SCALED = {"steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CLEAR = {**SCALED, "clip_sample": False}
FLOW_DPM = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
COG = {
    **CLEAR,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}
NO_LEVEL = "early stop and re-noising, it cannot add noise"

SCHEDULES = (
    Schedule("DDIMScheduler", discrete, CLEAR),
    Schedule("DDIMScheduler, v-prediction", discrete, {**CLEAR, "prediction_type": "v_prediction"}, "v"),
    Schedule("DDIMScheduler, sample", discrete, {**CLEAR, "prediction_type": "sample"}, "x0"),
    Schedule("DDIMParallelScheduler", discrete, CLEAR),
    Schedule("DDPMScheduler", discrete, CLEAR),
    Schedule("DDPMParallelScheduler", discrete, CLEAR),
    Schedule("PNDMScheduler, PLMS", discrete, {**SCALED, "skip_prk_steps": True}, order="4"),
    Schedule("PNDMScheduler", discrete, SCALED, order="4, Runge-Kutta first"),
    Schedule("LMSDiscreteScheduler", exploding, SCALED, order="4"),
    Schedule("EulerDiscreteScheduler", exploding, SCALED),
    Schedule("EulerDiscreteScheduler, v-prediction", exploding, {**SCALED, "prediction_type": "v_prediction"}, "v"),
    Schedule("EulerAncestralDiscreteScheduler", exploding, SCALED),
    Schedule("HeunDiscreteScheduler", exploding, SCALED, order="2"),
    Schedule("KDPM2DiscreteScheduler", interpolated, SCALED, order="2"),
    Schedule("KDPM2AncestralDiscreteScheduler", interpolated_behind, SCALED, order="2"),
    Schedule("DPMSolverMultistepScheduler", preserving, SCALED, order="2"),
    Schedule(
        "DPMSolverMultistepScheduler, SDE", preserving, {**SCALED, "algorithm_type": "sde-dpmsolver++"}, order="2"
    ),
    Schedule("DPMSolverMultistepScheduler, flow", flow, FLOW_DPM, "flow", "2"),
    Schedule("DPMSolverSinglestepScheduler", preserving, SCALED, order="2"),
    Schedule("DPMSolverSDEScheduler", geometric, {**SCALED, "noise_sampler_seed": 0}, order="2", needs="torchsde"),
    Schedule("DEISMultistepScheduler", preserving, SCALED, order="2"),
    Schedule("UniPCMultistepScheduler", preserving, SCALED, order="2"),
    Schedule("UniPCMultistepScheduler, flow", flow, FLOW_DPM, "flow", "2"),
    Schedule("SASolverScheduler", preserving, SCALED, order="2", noisy_end=True),
    Schedule("LCMScheduler", discrete, CLEAR),
    Schedule("TCDScheduler", discrete, CLEAR),
    Schedule("EDMEulerScheduler", exploding, {}, "edm"),
    Schedule("EDMDPMSolverMultistepScheduler", exploding, {}, "edm", "2"),
    Schedule("CogVideoXDDIMScheduler", discrete, COG, "v"),
    Schedule("FlowMatchEulerDiscreteScheduler", flow, {"shift": 3.0}, "flow"),
    Schedule("FlowMatchEulerDiscreteScheduler, stochastic", flow, {"stochastic_sampling": True}, "flow"),
    Schedule(
        "FlowMatchEulerDiscreteScheduler, inverted", inverted, {"shift": 3.0, "invert_sigmas": True}, "inverted flow"
    ),
    Schedule("FlowMatchHeunDiscreteScheduler", flow, {"shift": 3.0}, "flow", "2"),
    Schedule("FlowMatchLCMScheduler", flow, {"shift": 3.0}, "flow"),
    Schedule("IPNDMScheduler", None, {}, order="4", refuses=NO_LEVEL),
)


def prediction(schedule: Schedule, level: Level, x0: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser predicts that knows all data to be the one point x0."""
    alpha, sigma = level
    noise = (latents - alpha * x0) / sigma
    if schedule.predicts == "epsilon":
        return noise
    if schedule.predicts == "x0":
        return x0
    if schedule.predicts == "flow":
        return noise - x0
    if schedule.predicts == "inverted flow":
        return x0 - noise
    if schedule.predicts == "v":
        size = (alpha**2 + sigma**2).sqrt()
        return alpha / size * noise - sigma / size * x0
    assert schedule.predicts == "edm"  # F of D = c_skip x + c_out F, Karras et al. 2022, with sigma_data = 1/2
    total = sigma**2 + 0.25
    return (x0 - 0.25 / total * latents) / (0.5 * sigma / total.sqrt())
