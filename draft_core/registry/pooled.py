"""Methods that learn from a pool of samples at any noise level, and run no chain for an update."""

from __future__ import annotations

from typing import Literal

from draft_core.registry.config import Field, MethodConfig
from draft_core.registry.specs import MethodSpec
from draft_core.setting import check_pool_steps


class PoolConfig(MethodConfig):
    """What these methods share: how the pool is filled, and to which levels its samples are re-noised."""

    size: int = Field(64, ge=1, description="How many samples are remembered; a batch at least.")
    refresh: int = Field(
        8, ge=1, description="A batch of fresh samples comes into the pool every so many updates; 1 draws for each."
    )
    prefix_steps: int | None = Field(
        None,
        ge=1,
        description="Sampler steps of fresh samples, fewer than model.num_inference_steps; left out, all of them.",
    )
    last: int | None = Field(
        None,
        ge=1,
        description="Samples are re-noised to the level of one of so many last steps, the same for the batch, drawn "
        "anew for each update; 1 is the level of the last step. Left out, any level.",
    )

    def check_steps(self, steps: int) -> None:
        """Refuses more last steps than the `steps` of the sampler, and a prefix that is not shorter.

        Raises:
            RecipeError: naming the field to change.
        """
        check_pool_steps(self.last, self.prefix_steps, steps)


class Pool(PoolConfig):
    """Any level from a pool: x0 re-noised, one denoiser call with gradient, and the reward of its posterior mean.

    Images of a file in the place of own samples: Shen et al. 2025, arXiv 2509.06942.
    """

    kind: Literal["pool"] = "pool"


class Target(PoolConfig):
    """The same with detached targets: the prediction of x0, moved along the reward's gradient, is regressed on.

    Decoder and reward on one side, denoiser on the other are never in memory together. No publication; see
    docs/methods.md for what was measured.
    """

    kind: Literal["target"] = "target"
    radius: float = Field(
        0.1,
        gt=0,
        description="How far the target lies from the prediction of x0, root mean square over the values of a latent.",
    )
    fits: int = Field(1, ge=1, le=64, description="Optimiser steps towards one target.")


POOLED = (
    MethodSpec(
        kind="pool",
        config=Pool,
        summary="samples of a pool at any noise level, one denoiser call; no chain is run for an update",
        learner="draft_core.learners.pool:PoolLearner",
        yields_divergence=True,
    ),
    MethodSpec(
        kind="target",
        config=Target,
        summary="regression on x0 moved along the reward's gradient: the least memory",
        learner="draft_core.learners.pool:TargetLearner",
        yields_divergence=True,
    ),
)
