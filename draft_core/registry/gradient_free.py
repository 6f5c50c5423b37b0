"""Methods that need no gradient of the reward: any program, person or file size can be one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from draft_core.errors import DraftError, RecipeError
from draft_core.preferences import TIE, preferences
from draft_core.registry.config import Field, MethodConfig
from draft_core.registry.specs import MethodSpec
from draft_core.setting import RecipePath


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

    @property
    def compares_images(self) -> bool:
        """Advantages are relative to the other images."""
        return True

    @property
    def scores_groups(self) -> bool:
        """Minibatches have their images of a prompt apart, and each is scored by itself."""
        return self.minibatches == 1

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

    @property
    def compares_images(self) -> bool:
        """Weights are relative to the other images."""
        return True

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses a rate of acceptance where nothing is rejected.

        Raises:
            RecipeError: naming the field to leave out.
        """
        if self.weighting == "softmax" and self.acceptance_rate is not None:
            raise RecipeError(
                "with weighting softmax no sample is rejected", where="method.acceptance_rate", next="leave it out"
            )


class DPO(MethodConfig):
    """Diffusion-DPO: learns from pairs of images of which one is better (Wallace et al. 2024, arXiv 2311.12908).

    The pairs are those of a file, or the best and the worst of each prompt's own samples by the rewards.
    """

    kind: Literal["dpo"] = "dpo"
    pairs: Annotated[Path, RecipePath(of="file")] | None = Field(
        None,
        description="A file of pairs, such as the `votes.jsonl` of `draft vote`, whose prompts are then those of the "
        "training: `prompt`, `winner` and `loser` in each line, image files relative to the file's folder. Left out, "
        "samples are drawn and ranked by the rewards.",
    )
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid",
        description="-log sigmoid of the margin, or with ipo its squared distance from 1/2, which bounds how far the "
        "model goes where all answers agree (Azar et al. 2023, arXiv 2310.12036).",
    )
    beta: float = Field(
        2000.0,
        gt=0,
        description="How closely the base model is kept to, T times the beta of the paper, as published settings give "
        "it (2000 to 5000): half of it is the factor of the mean squared errors in the margin. Larger keeps closer.",
    )
    fits: int = Field(1, ge=1, le=64, description="Optimiser steps of an update, each with fresh noise on its pairs.")
    levels: int = Field(
        1,
        ge=1,
        le=64,
        description="Noise levels over which the margin of a pair is averaged: more make it less noisy, and take that "
        "many denoiser calls at once.",
    )

    @property
    def compares_images(self) -> bool:
        """Own samples are ranked."""
        return self.pairs is None

    @property
    def trains_on_rewards(self) -> bool:
        """They rank own samples; pairs of a file are ranked already."""
        return self.pairs is None

    @property
    def prompt_file(self) -> Path | None:
        """That of the pairs."""
        return self.pairs

    def check_prompts(self, columns: Mapping[str, Sequence[str]]) -> None:
        """Refuses pairs that do not say which image is better, all of them ties, or whose images are not there.

        Raises:
            DraftError: naming the pair, and the file that is missing.
        """
        if self.pairs is None:
            return
        pairs = preferences(columns, self.pairs.parent)
        if all(pair.grade == TIE for pair in pairs):
            raise DraftError(f"all {len(pairs)} pairs are ties, and say nothing", next="add pairs that prefer an image")
        for number, pair in enumerate(pairs, 1):
            for image in (pair.winner, pair.loser):
                if not image.is_file():
                    raise DraftError(
                        f"pair {number}: there is no file {image}", next="correct it, or leave that pair out"
                    )

    def check_batch(self, images: int, of_each_prompt: int) -> None:
        """Refuses prompts of one image where images are compared, and several of each where a pair belongs to one.

        Raises:
            RecipeError: naming the field to change.
        """
        if self.pairs is None and of_each_prompt < 2:
            raise RecipeError(
                "dpo compares the images of one prompt, and each prompt of a batch has one",
                where="train.images_per_prompt",
                next="set it to 2 or more, such as 4; or name a file of pairs in method.pairs",
            )
        if self.pairs is not None and of_each_prompt > 1:
            raise RecipeError(
                "each pair of method.pairs has one prompt, and no image is drawn in training",
                where="train.images_per_prompt",
                next="leave it out, and num_images_per_prompt; train.batch_size counts pairs",
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
        gates_divergence=True,
    ),
    MethodSpec(
        kind="grpo",
        config=GRPO,
        summary="GRPO: policy gradient, images compared with the others of their prompt; any reward",
        learner=f"{LEARNER}:grpo",
        needs_gradient=False,
        yields_divergence=True,
        gates_divergence=True,
    ),
    MethodSpec(
        kind="importance",
        config=Importance,
        summary="importance fine-tuning, RAFT: regression on the best own samples; any reward",
        learner="draft_core.learners.weighted_regression:WeightedRegression",
        needs_gradient=False,
        yields_divergence=True,
    ),
    MethodSpec(
        kind="dpo",
        config=DPO,
        summary="Diffusion-DPO: pairs of images of which one is better, from a file or ranked by any reward",
        learner="draft_core.learners.preference:PreferenceLearner",
        needs_gradient=False,
        yields_divergence=True,
    ),
)
