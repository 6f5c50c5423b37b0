"""Predictions for images that are given, at noise levels of the chain: what regressions and preferences compare."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.learners.recorded_runs import BaseModel
from draft_core.sampling.randomness import from_seed
from draft_core.sampling.replay import outline, renoise
from draft_core.sampling.rollout import Rollout, StepOutput
from draft_core.sampling.sampler import DifferentiableSampler


@dataclass(frozen=True)
class Regression:
    """What the denoiser predicts at one noise level, and what it should.

    Arguments:
        prediction: after guidance, with gradient, (B, ...).
        target: the prediction that says that the noisy latents are made of the given ones, shaped like it.
        base: what the base model predicts, shaped like it; None where there is none.
    """

    prediction: torch.Tensor
    target: torch.Tensor
    base: torch.Tensor | None

    @property
    def errors(self) -> torch.Tensor:
        """Mean squared error of each image, (B,), with gradient."""
        return _mean_squares(self.prediction - self.target)

    @property
    def base_errors(self) -> torch.Tensor:
        """The same of the base model, (B,)."""
        assert self.base is not None
        return _mean_squares(self.base - self.target)

    @property
    def divergence(self) -> torch.Tensor | None:
        """Mean squared difference from the base model's prediction, (), with gradient; None where there is none."""
        return None if self.base is None else (self.prediction - self.base).float().square().mean()


def outline_of(sampler: DifferentiableSampler, prompts: list[str], seeds: list[int], blanks: dict[Any, Any]) -> Rollout:
    """A run of these prompts without its networks, in which given images can be re-noised.

    Arguments:
        prompts, seeds: B of each; the noise of an image depends on its seed alone.
        blanks: of earlier outlines by this sampler, or empty; kept up by this one.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with from_seed(seeds[0]):
        return outline(sampler, prompts, sampler.steps, generators, blanks)


def regress(
    sampler: DifferentiableSampler, base: BaseModel | None, rollout: Rollout, x0: torch.Tensor, steps: Collection[int]
) -> list[Regression]:
    """The predictions at the noise levels from which these steps start, in the order of the steps.

    Arguments:
        sampler: without its base model (`recorded_runs.apart`), which is `base`.
        rollout: of `outline_of`; it draws the noise.
        x0: finished latents of its B prompts, (B, ...).
        steps: numbers of the chain's steps, each once; the graphs of all of them are alive together.
    """
    given = {number: renoise(sampler, rollout, number, x0) for number in sorted(steps)}
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def visit(output: StepOutput) -> None:
        target, prediction = output.prediction_for(x0), output.prediction
        if prediction.ndim > 1 and prediction.shape[1] == 2 * target.shape[1]:  # it also predicts a variance
            prediction = prediction.chunk(2, dim=1)[0]
        found.append((prediction, target))

    sampler.replay(rollout, given, visit)
    tuned, found = found, []
    of_base: list[torch.Tensor | None] = [None] * len(tuned)
    if base is not None:
        with torch.no_grad(), base():
            sampler.replay(rollout, given, visit)
        of_base = [prediction for prediction, _ in found]
    return [
        Regression(prediction, target, untuned) for (prediction, target), untuned in zip(tuned, of_base, strict=True)
    ]


def _mean_squares(differences: torch.Tensor) -> torch.Tensor:
    return differences.float().square().flatten(1).mean(1)
