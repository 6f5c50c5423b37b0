"""Importance fine-tuning: regression on own samples, weighted by how much better than their frequency they are.

The target is the base model's distribution times exp(reward / temperature), reached with neither the reward's gradient
nor one through the sampler (Denker et al. 2025, arXiv 2502.04468). Without path weights it is RAFT (Dong et al. 2023,
arXiv 2304.06767), and with a softmax reward-weighted regression (Peters and Schaal 2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol

import torch

from draft_core.errors import SamplerError
from draft_core.learners.importance_weights import acceptance, effective_share, normalised
from draft_core.learners.learner import Batch, Loss, Score
from draft_core.learners.path_samples import (
    PathSample,
    latents_of,
    log_density,
    log_density_then,
    outline_of_samples,
)
from draft_core.learners.recorded_runs import BaseModel, apart, record, require_noise, require_single_images
from draft_core.learners.regression import regress
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler

ACCEPTED = 0.25  # share of the samples, where none is said
FEW = 0.1  # of the samples; with a lower effective share a few of them stand for all


class RegressionSettings(Protocol):
    """What the method's config says, `registry.gradient_free.Importance`."""

    temperature: float
    path_weights: bool
    weighting: str
    acceptance_rate: float | None
    buffer: int
    fits: int
    levels: int


@dataclass(frozen=True)
class Weighed:
    """A sample of the pool.

    Arguments:
        log_weight: logarithm of its importance weight; minus infinity where the reward is not finite.
        rank: of the process that learns from it.
    """

    sample: PathSample
    log_weight: float
    rank: int


@dataclass(frozen=True)
class Chunk:
    """Samples that one denoiser call takes, with their weights, (B,), and an outline of their prompts."""

    samples: Sequence[PathSample]
    weights: torch.Tensor
    rollout: Rollout


class WeightedRegression:
    """Denoising score matching on samples that are accepted, or weighted, by their importance.

    The samples are fresh ones and as many remembered ones. The logarithm of a weight is reward / temperature, and with
    path weights also the sum over the noisy steps of log N(after; base mean, std) - log N(after; mean, std), the second
    of the model that drew the sample: exact for the chain of steps, however old the sample is. A step without noise has
    no density: it stays as the model takes it. What is fitted is the prediction after guidance, by which samples are
    drawn.
    """

    needs_gradient = False
    yields_divergence = True

    def __init__(self, settings: RegressionSettings) -> None:
        self.settings = settings
        self.needs_base_model = settings.path_weights
        self.buffer: list[PathSample] = []
        self.blanks: dict[Any, Any] = {}  # of outlines

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a sampler whose paths cannot be weighed.

        Raises:
            SamplerError: if paths are to be weighed, and steps have no probabilities or there is no base model.
            RecipeError: if a call makes several images of a prompt.
        """
        sampler.traits.check_replay(sampler.pipe)
        require_single_images(sampler)
        if self.settings.path_weights:
            require_noise(sampler)
            if sampler.base_model is None:
                raise SamplerError(
                    "the sampler knows no base model to weigh paths by",
                    where="DifferentiableSampler.base_model",
                    next="give it one, or leave out path weights",
                )

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """`fits` optimiser steps, each on `levels` noise levels of the samples that were chosen.

        The effective share of the samples, and with rejection the rate of acceptance, stand in the report of each loss.
        Its divergence is the mean squared difference between the predictions of tuned and base denoiser, where the
        sampler has a base model.
        """
        self.check(sampler)
        sampler, base = apart(sampler)
        parts = batch.ranks.gather(self._draw(batch, sampler, base, score))
        fresh = [self._weighed(sample, rank) for rank, part in enumerate(parts) for sample in part]
        pool = [*fresh, *self._remembered(fresh, batch)]
        drawn = [item.sample for item in fresh if math.isfinite(item.log_weight)]
        self.buffer = [*self.buffer, *drawn][-self.settings.buffer :] if self.settings.buffer else []
        fits = self.settings.fits
        if not any(math.isfinite(item.log_weight) for item in pool):
            # the trainer has seen the scores, and skips the step
            pool, fits = [replace(item, log_weight=0.0) for item in pool], 1
        weights, report = self._weights(pool, batch.update)
        chunks = list(self._chunks(batch, sampler, pool, weights))
        scarce = report["effective_share"] < FEW
        for _ in range(fits):
            for left in reversed(range(self.settings.levels)):
                number = batch.rng.randrange(sampler.steps)
                for chunk in chunks:
                    value, divergence = _fit(sampler, base, chunk, number)
                    yield Loss(
                        value,
                        share=float(chunk.weights.sum()) * batch.ranks.world_size / sum(weights) / self.settings.levels,
                        step=not left and chunk is chunks[-1],
                        images=int((chunk.weights > 0).sum()),
                        divergence=divergence,
                        report=report,
                        notes=[_note(report["effective_share"], len(pool), self.settings)] if scarce else (),
                    )

    def _draw(
        self, batch: Batch, sampler: DifferentiableSampler, base: BaseModel | None, score: Score
    ) -> list[PathSample]:
        """Fresh samples of this process."""
        (rollout,) = record(sampler, batch)
        with torch.no_grad():
            rewards = score(rollout.images, rollout.prompts).total.tolist()
        assert rollout.latents is not None
        log_ratios = [0.0] * len(rewards)
        if self.settings.path_weights and base is not None:
            steps = sorted(sampler.noisy_steps)
            with base():
                under_base = log_density(sampler, rollout, steps)
            log_ratios = (under_base - log_density_then(rollout, steps)).tolist()
        seeds = [generator.initial_seed() for generator in batch.generators]
        return list(map(PathSample, rollout.prompts, seeds, rewards, rollout.latents.cpu().unbind(), log_ratios))

    def _weighed(self, sample: PathSample, rank: int) -> Weighed:
        log_weight = sample.reward / self.settings.temperature + sample.log_ratio
        return Weighed(sample, log_weight if math.isfinite(log_weight) else -math.inf, rank)

    def _remembered(self, fresh: Sequence[Weighed], batch: Batch) -> list[Weighed]:
        """As many remembered samples as there are fresh ones, or all, shared out among the processes."""
        count = min(len(self.buffer), len(fresh))
        chosen = Random(f"replay {fresh[0].sample.seed}").sample(self.buffer, count)
        share = math.ceil(count / batch.ranks.world_size)
        return [self._weighed(sample, place // share) for place, sample in enumerate(chosen)]

    def _weights(self, pool: Sequence[Weighed], update: int) -> tuple[list[float], dict[str, float]]:
        """How much each sample counts in the fit, and what is reported of that."""
        log_weights = [item.log_weight for item in pool]
        report = {"effective_share": effective_share(log_weights)}
        if self.settings.weighting == "softmax":
            return normalised(log_weights), report
        chances = acceptance(log_weights, self.settings.acceptance_rate or ACCEPTED)
        draws = [Random(f"accept {item.sample.seed} {update}").random() for item in pool]
        accepted = [float(draw < chance) for draw, chance in zip(draws, chances, strict=True)]
        if not any(accepted):
            accepted[log_weights.index(max(log_weights))] = 1.0
        return accepted, {**report, "acceptance_rate": sum(accepted) / len(accepted)}

    def _chunks(
        self, batch: Batch, sampler: DifferentiableSampler, pool: Sequence[Weighed], weights: Sequence[float]
    ) -> Iterator[Chunk]:
        """This process' samples that count, at most a batch at once; all processes have as many and as large ones."""
        counted = [
            [(item.sample, weight) for item, weight in zip(pool, weights, strict=True) if item.rank == rank]
            for rank in range(batch.ranks.world_size)
        ]
        most = max(sum(weight > 0 for _, weight in part) for part in counted)
        size = min(most, len(batch.prompts))
        own = [(sample, weight) for sample, weight in counted[batch.ranks.rank] if weight]
        own += [(counted[batch.ranks.rank][0][0], 0.0)] * (math.ceil(most / size) * size - len(own))
        for first in range(0, len(own), size):
            samples = [sample for sample, _ in own[first : first + size]]
            rollout = outline_of_samples(sampler, samples, "fit", batch.update, self.blanks)
            yield Chunk(samples, torch.tensor([weight for _, weight in own[first : first + size]]), rollout)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """None: the adapter is all that is trained."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """The remembered samples."""
        return {"buffer": [vars(sample) for sample in self.buffer]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        self.buffer = [PathSample(**sample) for sample in state["buffer"]]


def _fit(
    sampler: DifferentiableSampler, base: BaseModel | None, chunk: Chunk, number: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weighted mean of |prediction - target|^2 over the samples at the level of a step, and the divergence, each ()."""
    x0 = latents_of(chunk.samples, chunk.rollout)
    (regression,) = regress(sampler, base, chunk.rollout, x0, {number})
    distances = regression.errors
    weights = chunk.weights.to(distances)
    value = (weights * distances).sum() / weights.sum() if weights.any() else distances.mean()
    return value, regression.divergence


def _note(share: float, samples: int, settings: RegressionSettings) -> str:
    cause = "temperature, or leave out path weights" if settings.path_weights else "temperature"
    return (
        f"the weights of {samples} samples are worth {share * samples:.1f}: few of them stand for all; raise "
        f"method.{cause}"
    )
