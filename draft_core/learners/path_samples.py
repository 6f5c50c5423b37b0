"""Samples with what is known of the path that led to them: how probable a model finds it, and what is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from draft_core.learners.recorded_runs import log_probability_then
from draft_core.learners.regression import outline_of
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
        log_ratio: logarithm of the density of its path under the base model over that under the model that drew it; 0
            where paths are not weighed.
    """

    prompt: str
    seed: int
    reward: float
    latents: torch.Tensor
    log_ratio: float = 0.0


def outline_of_samples(
    sampler: DifferentiableSampler, samples: Sequence[PathSample], use: str, update: int, blanks: dict[Any, Any]
) -> Rollout:
    """A run of the prompts of these samples without its networks, in which they can be re-noised.

    Arguments:
        use: what they are re-noised for; the noise of a sample depends on this, its seed and the update alone.
        blanks: as in `outline_of`.
    """
    seeds = [Random(f"{use} {sample.seed} {update}").getrandbits(62) for sample in samples]
    return outline_of(sampler, [sample.prompt for sample in samples], seeds, blanks)


def latents_of(samples: Sequence[PathSample], rollout: Rollout) -> torch.Tensor:
    """The finished latents of these samples, (B, ...), of the type and on the device of a run."""
    assert rollout.origin is not None
    return torch.stack([sample.latents for sample in samples]).to(rollout.origin.latents)


def log_density_then(rollout: Rollout, steps: Sequence[int]) -> torch.Tensor:
    """Log-density of a recorded path when it was drawn, (B,) in float64: a sum over these steps and all dimensions."""
    return _of_path(rollout, [log_probability_then(rollout, number) for number in steps])


def log_density(sampler: DifferentiableSampler, rollout: Rollout, steps: Sequence[int]) -> torch.Tensor:
    """The same under the present weights, without gradient: one denoiser call for each of these steps."""
    found: list[torch.Tensor] = []

    def add(output: StepOutput) -> None:
        after = rollout.trajectory[output.number].after
        found.append(output.gaussian().log_probability(after))

    with torch.no_grad():
        sampler.replay(rollout, {number: rollout.trajectory[number].before for number in steps}, add)
    return _of_path(rollout, found)


def _of_path(rollout: Rollout, by_step: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum over steps and dimensions, (B,) in float64, of means over dimensions, (B,) for each step."""
    return torch.stack([mean.double() for mean in by_step]).sum(0) * rollout.trajectory[0].before[0].numel()
