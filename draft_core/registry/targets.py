"""Regression on detached targets: the method that needs the least memory."""

from __future__ import annotations

from typing import Literal

from draft_core.registry.config import Field, MethodConfig
from draft_core.registry.specs import MethodSpec
from draft_core.setting import check_target_steps


class Target(MethodConfig):
    """Detached targets: the prediction of x0, moved along the reward's gradient, is what the denoiser is fitted to.

    Decoder and reward on one side, denoiser on the other are never in memory together. The prediction is made of a
    sample that is re-noised, of a batch or of a pool of earlier ones. No publication; see docs/methods.md for what was
    measured.
    """

    kind: Literal["target"] = "target"
    radius: float = Field(
        0.1,
        gt=0,
        description="How far the target lies from the prediction of x0, root mean square over the values of a latent.",
    )
    fits: int = Field(1, ge=1, le=64, description="Optimiser steps towards one target.")
    prefix_steps: int | None = Field(
        None,
        ge=1,
        description="Sampler steps of the samples, fewer than model.num_inference_steps; left out, all of them.",
    )
    last: int = Field(
        1,
        ge=1,
        description="Samples are re-noised to the level of one of so many last steps, the same for the batch, drawn "
        "anew for each update.",
    )
    refresh: int = Field(
        1,
        ge=1,
        description="A batch of samples is drawn every so many updates; in between, updates take earlier ones.",
    )
    size: int = Field(64, ge=1, description="How many samples are remembered; a batch at least.")

    def check_steps(self, steps: int) -> None:
        """Refuses more last steps than the `steps` of the sampler, and a prefix that is not shorter.

        Raises:
            RecipeError: naming the field to change.
        """
        check_target_steps(self.last, self.prefix_steps, steps)


TARGET = MethodSpec(
    kind="target",
    config=Target,
    summary="regression on x0 moved along the reward's gradient: the least memory",
    learner="draft_core.learners.targets:TargetLearner",
    yields_divergence=True,
    gates_divergence=True,
)
