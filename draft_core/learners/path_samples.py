"""Samples with the path that led to them: how probable a model finds a path, and what of one is remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from draft_core.learners.recorded_runs import log_probability_then
from draft_core.sampling.rollout import Rollout, StepOutput
from draft_core.sampling.sampler import DifferentiableSampler


@dataclass(frozen=True)
class PathSample:
    """One image as it is remembered, on the CPU.

    Arguments:
        prompt: its own.
        seed: of its noise; what is drawn for it later depends on this.
        reward: the weighted total.
        latents: x0, (...).
        path: latents before and after each of K noisy steps, (2, K, ...); None where paths are not weighed.
        base: log-density of the path under the base model; 0 where paths are not weighed.
    """

    prompt: str
    seed: int
    reward: float
    latents: torch.Tensor
    path: torch.Tensor | None = None
    base: float = 0.0

    def state(self) -> Mapping[str, Any]:
        """As a checkpoint holds it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def path_of(rollout: Rollout, steps: Sequence[int]) -> torch.Tensor:
    """Latents before and after these steps of every image, (B, 2, K, ...)."""
    taken = [rollout.trajectory[number] for number in steps]
    before, after = (torch.stack(part, dim=1) for part in ([s.before for s in taken], [s.after for s in taken]))
    return torch.stack([before, after], dim=1)


def log_density_then(rollout: Rollout, steps: Sequence[int]) -> torch.Tensor:
    """Log-density of a recorded path when it was drawn, (B,) in float64: a sum over these steps and all dimensions."""
    each = [log_probability_then(rollout, number).double() for number in steps]
    return torch.stack(each).sum(0) * rollout.trajectory[0].before[0].numel()


def log_density(
    sampler: DifferentiableSampler, rollout: Rollout, steps: Sequence[int], path: torch.Tensor
) -> torch.Tensor:
    """Log-density of paths under the present weights, (B,) in float64, without gradient.

    Arguments:
        rollout: of the same prompts, whose steps are replayed: the paths' own, or an outline.
        path: (B, 2, K, ...) of the K steps.
    """
    total = torch.zeros(len(path), dtype=torch.float64, device=path.device)
    after = {number: path[:, 1, index] for index, number in enumerate(steps)}

    def add(output: StepOutput) -> None:
        nonlocal total
        total = total + output.gaussian().log_probability(after[output.number]).double()

    with torch.no_grad():
        sampler.replay(rollout, {number: path[:, 0, index] for index, number in enumerate(steps)}, add)
    return total * path[0, 0, 0].numel()
