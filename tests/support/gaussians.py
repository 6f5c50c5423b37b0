"""How well the Gaussian of a step explains what was drawn, for every scheduler of diffusers; models.md lists it."""

from __future__ import annotations

import inspect
import sys
from typing import Any
from unittest import mock

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from draft_core.sampling import seams
from draft_core.sampling.noise_levels import step_gaussian

STEPS = 8
SHAPE = (2, 4, 4, 4)
STEP = {  # arguments of `step` that make it draw, and what some cannot do without
    "eta": 1.0,
    "s_churn": 2.0,
    "old_pred_original_sample": None,
    "timestep_back": None,
    "original_image": torch.zeros(SHAPE),
    "mask": torch.full(SHAPE, 0.5),
}
DPM = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"}
CONFIG = {"stochastic_sampling": True}
# Without torchsde, diffusers has placeholders in their place, which cannot be made.
TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")


def scheduler_names() -> list[str]:
    """The schedulers that diffusers exports."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    return [name for name in names if _is_scheduler(getattr(diffusers, name))]


def _is_scheduler(cls: Any) -> bool:
    return inspect.isclass(cls) and (issubclass(cls, SchedulerMixin) or "dummy" in cls.__module__)


def gaussian_verdict(name: str) -> tuple[str, str]:
    """Whether it draws, and its largest relative error as text or "refused"; else why it is not measured."""
    cls = getattr(diffusers, name)
    if name in TORCHSDE:
        return "yes", "refused"
    try:
        scheduler = cls(**_known(cls, {**CONFIG, **DPM} if "DPMSolver" in name else CONFIG))
        scheduler.set_timesteps(STEPS)
        error, draws = gaussian_error(scheduler)
    except ArithmeticError:
        return "not measured", "its latents are not finite with random predictions"
    except Exception as problem:  # tokens, atoms, or arguments of its own
        return "not measured", f"not stepped by prediction, timestep and latents ({type(problem).__name__})"
    return "yes" if draws else "no", "exact" if error == 0 else f"{error:.0e}"


def gaussian_error(scheduler: Any) -> tuple[float, bool]:
    """Largest |after - (mean + std noise)| over a chain, relative to the latents, and whether noise was drawn."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    more = {**_known(scheduler.step, STEP), **_known(scheduler.step, {"generator": generator})}
    worst, draws = 0.0, False
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, timestep)
        prediction = torch.randn(SHAPE, generator=generator)
        given = {"model_output": prediction, "timestep": timestep, "sample": latents, **more}
        call = seams.step_call(scheduler.step, (), given)
        gaussian = step_gaussian(scheduler, call)
        after, drawn = _stepped(scheduler, call)
        noise = drawn[-1] if drawn else torch.zeros(())
        if not after.isfinite().all():  # `max` would pass over it
            raise ArithmeticError("latents that are not finite")
        size = max(float(after.abs().max()), float(latents.abs().max()))
        worst = max(worst, float((after - gaussian.mean - gaussian.std * noise).abs().max()) / size)
        draws = draws or bool(gaussian.std.any())
        latents = after
    return worst, draws


def _stepped(scheduler: Any, call: seams.StepCall) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The latents after the step, and the noises that it drew."""
    module, drawn = sys.modules[type(scheduler).__module__], []
    owner, name = (module, "randn_tensor") if hasattr(module, "randn_tensor") else (torch, "randn")
    draw = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(draw(*args, **kwargs))
        noise: torch.Tensor = drawn[-1]
        return noise

    with mock.patch.object(owner, name, watched):
        return seams.first_of(call.run(), "prev_sample"), drawn


def _known(function: Any, values: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in known}
