"""Gradient estimators: each published method as a small config that makes a step plan.

A new method is a new class of ten lines here; the sampler knows no method's name.
Names wing, no torch here. May import: errors, config, plan.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from draft_core.config import Config, Field
from draft_core.errors import RecipeError
from draft_core.plan import StepPlan


class Draft(Config):
    """DRaFT: the gradient flows through all T steps (Clark et al. 2024, arXiv 2309.17400, section 3.1)."""

    kind: Literal["draft"] = "draft"

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """All `steps` steps graded; draws nothing from `rng`."""
        return StepPlan(steps, frozenset(range(steps)))


class DraftK(Config):
    """DRaFT-K: the gradient stops at x_K, so only the last K steps count (Clark et al. 2024, section 3.2)."""

    kind: Literal["draft-k"] = "draft-k"
    k: int = Field(1, ge=1, description="How many of the last sampler steps the gradient flows through.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last `k` of `steps` steps graded; draws nothing from `rng`.

        Raises:
            RecipeError: if `k` exceeds `steps`.
        """
        if self.k > steps:
            raise RecipeError(
                f"k = {self.k} is larger than the number of sampler steps, {steps}",
                where="estimator.k",
                next=f"use k <= {steps}, or raise model.num_inference_steps",
            )
        return StepPlan(steps, frozenset(range(steps - self.k, steps)))


class DraftLV(Config):
    """DRaFT-LV: DRaFT-1 with the variance lowered by re-noising x0 (Clark et al. 2024, section 3.2, algorithm 1).

    After a sample x0, `resamples` times: x_1 = alpha_1 * stopgrad(x0) + sigma_1 * eps with fresh eps, one
    denoising step, and the gradient of the reward of that image is added.
    """

    kind: Literal["draft-lv"] = "draft-lv"
    resamples: int = Field(2, ge=0, description="Fresh re-noisings of each sample, n in the paper; 0 is DRaFT-1.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last step graded, x0 re-noised `resamples` times; draws nothing from `rng`."""
        return StepPlan(steps, frozenset({steps - 1}), resamples=self.resamples)


EstimatorConfig = Annotated[Draft | DraftK | DraftLV, Field(discriminator="kind")]

ESTIMATORS = {"draft": Draft, "draft-k": DraftK, "draft-lv": DraftLV}
