"""Methods that need no gradient of the reward: any program, person or file size can be one."""

from __future__ import annotations

from typing import Literal

from draft_core.errors import RecipeError
from draft_core.registry.config import Field, MethodConfig
from draft_core.registry.specs import MethodSpec


class PolicyGradientConfig(MethodConfig):
    """What the policy gradients share: the clipped loss, and how often a batch is used."""

    clip_range: float = Field(
        1e-4,
        gt=0,
        lt=1,
        description="How far the ratio of a step's probabilities now and then may leave 1 before it earns no more; of "
        "probabilities a dimension, which move little.",
    )
    advantage_clip: float = Field(5.0, gt=0, description="Largest advantage, in standard deviations.")
    inner_epochs: int = Field(1, ge=1, le=64, description="How often an update goes over its images.")
    minibatches: int = Field(
        1, ge=1, description="Optimiser steps in one inner epoch, each on an equal part of train.batch_size."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="How many steps of the chain are trained, drawn anew for each inner epoch; left out, all that draw "
        "noise.",
    )

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses a batch that the minibatches do not divide.

        Raises:
            RecipeError: naming both numbers.
        """
        if images % self.minibatches:
            raise RecipeError(
                f"{self.minibatches} minibatches do not divide a batch of {images} images",
                where="method.minibatches",
                next=f"make train.batch_size a multiple of {self.minibatches}",
            )


class DDPO(PolicyGradientConfig):
    """DDPO: clipped policy gradient, advantages by a prompt's last rewards (Black et al. 2023, arXiv 2305.13301)."""

    kind: Literal["ddpo"] = "ddpo"
    history: int = Field(32, ge=2, description="How many rewards of each prompt are remembered.")
    least: int = Field(
        16,
        ge=2,
        description="With fewer rewards of a prompt than this, its images are compared with the whole batch.",
    )

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses also a number of rewards that the memory cannot hold.

        Raises:
            RecipeError: naming both numbers.
        """
        super().check_batch(images, of_each_prompt)
        if self.least > self.history:
            raise RecipeError(
                f"least = {self.least} exceeds history = {self.history}, so that no prompt would ever have enough",
                where="method.least",
                next="lower it",
            )


class GRPO(PolicyGradientConfig):
    """Flow-GRPO: the same, advantages by the images of one prompt in a batch (Liu et al. 2025, arXiv 2505.05470)."""

    kind: Literal["grpo"] = "grpo"

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses groups of one image.

        Raises:
            RecipeError: naming the field to raise.
        """
        super().check_batch(images, of_each_prompt)
        if of_each_prompt < 2:
            raise RecipeError(
                "grpo compares the images of one prompt, and each prompt of a batch has one",
                where="train.images_per_prompt",
                next="set it to 2 or more, such as 4",
            )


class Importance(MethodConfig):
    """Iterative importance fine-tuning: regression on accepted samples (Denker et al. 2025, arXiv 2502.04468).

    Without path weights it is RAFT (Dong et al. 2023, arXiv 2304.06767); with `weighting: softmax` as well,
    reward-weighted regression.
    """

    kind: Literal["importance"] = "importance"
    temperature: float = Field(
        1.0, gt=0, description="The target is the base model's distribution times exp(reward / temperature)."
    )
    path_weights: bool = Field(
        True,
        description="Weigh each sample also by how much more probable its path is under the base model, so that the "
        "target stays where it is while the model moves. Needs steps that draw noise.",
    )
    weighting: Literal["rejection", "softmax"] = Field(
        "rejection", description="Samples are accepted or not, or all count by their weights."
    )
    acceptance_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the samples that rejection accepts; lower comes nearer to the target. Left out, 0.25.",
    )
    buffer: int = Field(
        64,
        ge=0,
        description="How many of the last samples are remembered, and chosen from anew beside fresh ones.",
    )
    fits: int = Field(4, ge=1, le=64, description="Optimiser steps of an update.")
    levels: int = Field(4, ge=1, le=64, description="Noise levels at which each of them compares predictions.")

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses a rate of acceptance where nothing is rejected.

        Raises:
            RecipeError: naming the field to leave out.
        """
        if self.weighting == "softmax" and self.acceptance_rate is not None:
            raise RecipeError(
                "with weighting softmax no sample is rejected", where="method.acceptance_rate", next="leave it out"
            )


LEARNER = "draft_core.learners.policy_gradient"

GRADIENT_FREE = (
    MethodSpec(
        kind="ddpo",
        config=DDPO,
        summary="DDPO: policy gradient, images compared with earlier ones of their prompt; any reward",
        learner=f"{LEARNER}:ddpo",
        needs_gradient=False,
        yields_divergence=True,
    ),
    MethodSpec(
        kind="grpo",
        config=GRPO,
        summary="GRPO: policy gradient, images compared with the others of their prompt; any reward",
        learner=f"{LEARNER}:grpo",
        needs_gradient=False,
        yields_divergence=True,
    ),
    MethodSpec(
        kind="importance",
        config=Importance,
        summary="importance fine-tuning, RAFT: regression on the best own samples; any reward",
        learner="draft_core.learners.weighted_regression:WeightedRegression",
        needs_gradient=False,
        yields_divergence=True,
    ),
)
