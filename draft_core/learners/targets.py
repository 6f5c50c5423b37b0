"""Regression on detached targets: decoder and reward, and the denoiser, never in memory together.

A sample is re-noised to some level, and what the denoiser makes of it there is moved along the reward's gradient and
fitted to. Samples may serve several updates; no chain of steps is run for these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch

from draft_core.learners.direct import require_gradient
from draft_core.learners.latents.decode import decode
from draft_core.learners.learner import Batch, Loss, Score, gate_of, gated_mean
from draft_core.learners.path_samples import PathSample, latents_of, outline_of_samples
from draft_core.learners.recorded_runs import BaseModel, apart, record, require_single_images, step_from
from draft_core.sampling.replay import renoise
from draft_core.sampling.rollout import Rollout, StepOutput
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import check_target_steps


class TargetSettings(Protocol):
    """What the method's config says, `registry.targets.Target`."""

    radius: float
    fits: int
    prefix_steps: int | None
    last: int
    refresh: int
    size: int


@dataclass(frozen=True)
class Renoised:
    """Samples of the pool at the noise level of one step.

    Arguments:
        sampler: without its base model, which is `base`.
        prompts: of these samples, B.
        rollout: an outline of them.
        number: of the step.
        latents: alpha x0 + sigma eps, (B, ...).
    """

    sampler: DifferentiableSampler
    base: BaseModel | None
    prompts: list[str]
    rollout: Rollout
    number: int
    latents: torch.Tensor

    def step(self) -> StepOutput:
        """The step as the present weights take it; recorded if the caller records."""
        return step_from(self.sampler, self.rollout, self.number, self.latents)

    def divergence(self, step: StepOutput, gate: torch.Tensor | None) -> torch.Tensor | None:
        """Mean squared difference of a step's prediction from the base model's, (); None where there is none.

        Arguments:
            gate: of the samples, `Scores.gate`.
        """
        if self.base is None:
            return None
        with torch.no_grad(), self.base():
            expected = self.step().prediction
        return gated_mean((step.prediction - expected).float().square(), gate)


class TargetLearner:
    """Regression on detached targets: the prediction of x0, moved some way along the reward's gradient.

    The reward's gradient g is taken at the posterior mean of x0, and the target is that mean + radius g / rms(g) for
    each sample. The graph of decoder and reward is gone before the denoiser's is made, so that the larger of them
    decides the memory. The first of the `fits` has the direction of the reward's gradient with equal weight of each
    sample; no number of them leads beyond the target.

    Every `refresh` updates the samples of a batch come into a pool, and beyond `size` the oldest leave it; the first
    update draws no more than later ones. All processes know the whole pool and learn from their share of it.
    """

    needs_gradient = True
    yields_divergence = True
    gates_divergence = True

    def __init__(self, settings: TargetSettings) -> None:
        self.settings = settings
        self.pool: list[PathSample] = []
        self.blanks: dict[Any, Any] = {}  # of outlines
        self.short: DifferentiableSampler | None = None

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a sampler whose steps cannot be taken one by one, or are fewer than the method says.

        Raises:
            SamplerError: if its pipeline cannot be replayed.
            RecipeError: if a call makes several images of a prompt, or there are fewer steps.
        """
        sampler.traits.check_replay(sampler.pipe)
        require_single_images(sampler)
        check_target_steps(self.settings.last, self.settings.prefix_steps, sampler.steps)
        self._shortened(sampler).traits  # noqa: B018  # or the call says now what it refuses

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """`fits` losses with a step after each: mean squared distances of the prediction of x0 from its target.

        Raises:
            RewardError: if the scores carry no gradient.
        """
        noisy = self.renoised(batch, sampler)
        with torch.no_grad():
            mean = noisy.step().posterior_mean()
        target, gate = self._target(noisy, mean, score)
        for _ in range(self.settings.fits):
            step = noisy.step()
            value = (step.posterior_mean() - target).float().square().mean()
            yield Loss(value, step=True, images=len(target), divergence=noisy.divergence(step, gate))

    def _target(self, noisy: Renoised, mean: torch.Tensor, score: Score) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the prediction of x0 is fitted to, shaped like `mean`, and the gate of its scores."""
        x0 = mean.detach().requires_grad_()
        decoded = decode(noisy.sampler, noisy.rollout, x0)
        scores = score(decoded.images, noisy.prompts, latents=decoded.latents)
        require_gradient(scores.per_reward)
        (gradient,) = torch.autograd.grad(scores.total.sum(), x0)
        gradient = gradient.float()
        size = gradient.square().flatten(1).mean(1).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        target = mean + (self.settings.radius * gradient / size.view(-1, *[1] * (mean.ndim - 1))).to(mean)
        return target, gate_of(scores)

    def renoised(self, batch: Batch, sampler: DifferentiableSampler) -> Renoised:
        """This process' share of what the update learns from, after fresh samples have come into the pool."""
        self.check(sampler)
        alone, base = apart(sampler)
        if len(self.pool) < len(batch.generators) * batch.ranks.world_size or not batch.update % self.settings.refresh:
            self._draw(batch, alone)
        seeds = [seed for part in batch.ranks.gather(_seeds(batch)) for seed in part]
        choice = Random(f"pool {min(seeds)}")
        count = len(batch.generators)
        chosen = choice.sample(self.pool, count * batch.ranks.world_size)
        chosen = chosen[batch.ranks.rank * count :][:count]
        number = choice.randrange(alone.steps - self.settings.last, alone.steps)
        rollout = outline_of_samples(alone, chosen, "level", batch.update, self.blanks)
        latents = renoise(alone, rollout, number, latents_of(chosen, rollout))
        return Renoised(alone, base, [sample.prompt for sample in chosen], rollout, number, latents)

    def _draw(self, batch: Batch, sampler: DifferentiableSampler) -> None:
        """Fresh samples of all processes, the oldest of the pool for them."""
        (rollout,) = record(self._shortened(sampler), batch, keep_trajectory=False)
        assert rollout.latents is not None
        drawn = [
            PathSample(prompt, seed, reward=0.0, latents=x0)
            for prompt, seed, x0 in zip(rollout.prompts, _seeds(batch), rollout.latents.cpu().unbind(), strict=True)
        ]
        fresh = [sample for part in batch.ranks.gather(drawn) for sample in part]
        fresh.sort(key=lambda sample: sample.seed)  # whatever the number of processes
        self.pool = [*self.pool, *fresh][-max(self.settings.size, len(fresh)) :]

    def _shortened(self, sampler: DifferentiableSampler) -> DifferentiableSampler:
        """The sampler, on a schedule of `prefix_steps` where the method has one."""
        if self.settings.prefix_steps is None:
            return sampler
        if self.short is None or self.short.pipe is not sampler.pipe:
            self.short = copy.copy(sampler)
            for name in ("traits", "noisy_steps"):
                vars(self.short).pop(name, None)
            self.short.num_inference_steps = self.settings.prefix_steps
        return self.short

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """None: the adapter is all that is trained."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """The pool."""
        return {"pool": [vars(sample) for sample in self.pool]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        self.pool = [PathSample(**sample) for sample in state["pool"]]


def _seeds(batch: Batch) -> Sequence[int]:
    return [generator.initial_seed() for generator in batch.generators]
