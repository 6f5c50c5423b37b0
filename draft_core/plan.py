"""A step plan: where the gradient may flow through one sampling run, as plain data.

The shared vocabulary of both wings: estimators make plans, the sampler runs them. Imports errors only.
"""

from __future__ import annotations

from dataclasses import dataclass

from draft_core.errors import SamplerError


@dataclass(frozen=True)
class StepPlan:
    """What autograd records of one sampling run; no tensor in it.

    Arguments:
        steps: number of sampler steps T, counted as calls of `scheduler.step`.
        graded: the steps whose denoiser call autograd records, 0 the first step and T - 1 the last.
            The chain of the sampler's own updates is recorded from the first graded step on.
        resamples: how often x0 is re-noised, detached, to the level of the last step and denoised once
            more with gradient (DRaFT-LV, Clark et al. 2024, section 3.2).

    Raises:
        SamplerError: if a graded step is outside 0..T-1, or resamples is negative.
    """

    steps: int
    graded: frozenset[int]
    resamples: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "graded", frozenset(self.graded))
        if self.steps < 1:
            raise SamplerError(f"a plan needs at least one step, not {self.steps}", where="StepPlan.steps")
        if outside := sorted(step for step in self.graded if not 0 <= step < self.steps):
            raise SamplerError(
                f"graded steps {outside} are outside 0..{self.steps - 1}",
                where="StepPlan.graded",
                next="number steps from 0, the first, to T - 1, the last",
            )
        if self.resamples < 0:
            raise SamplerError(f"resamples is {self.resamples}", where="StepPlan.resamples", next="use 0 or more")
