"""DDPO and GRPO: a clipped policy gradient, for which a reward is a number and nothing else.

A sampling run is a sequence of decisions: each step draws the next latents from a Gaussian. What led to a better image
than expected is made more probable. Come here for the loss; how rewards become advantages is in `advantages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from draft_core.errors import RecipeError
from draft_core.learners.advantages import Advantages, ByGroup, ByPrompt
from draft_core.learners.learner import Batch, Loss, Score, gate_of, gated_mean
from draft_core.learners.recorded_runs import BaseModel, again, apart, log_probability_then, record, require_noise
from draft_core.prompt_rows import row_key
from draft_core.sampling.noise_levels import Gaussian
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler


class PolicyGradientSettings(Protocol):
    """What the method's config says, `registry.gradient_free.PolicyGradientConfig`."""

    clip_range: float
    advantage_clip: float
    inner_epochs: int
    minibatches: int
    steps: int | None


class ByPromptSettings(PolicyGradientSettings, Protocol):
    """The same with what DDPO says beside it."""

    history: int
    least: int


class PolicyGradient:
    """Ascent on the clipped ratio of the probabilities of what was drawn, times its advantage (PPO, 1707.06347).

    The loss of a step is the mean over images of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)), where ratio is the
    exponential of the difference between the step's log-probabilities now and when it was drawn, each a mean over
    dimensions (Black et al. 2023, arXiv 2305.13301, equation 4 and appendix D).

    Arguments:
        settings: of the loss, and how often a batch is used.
        advantages: how rewards become advantages.
    """

    needs_gradient = False
    yields_divergence = True
    gates_divergence = True

    def __init__(self, settings: PolicyGradientSettings, advantages: Advantages) -> None:
        self.settings = settings
        self.advantages = advantages

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a sampler whose steps have no probabilities, or fewer than are to be trained.

        Raises:
            SamplerError: if the scheduler is deterministic, or its steps build on earlier ones.
            RecipeError: if there are fewer noisy steps than `steps`.
        """
        noisy, wanted = require_noise(sampler), self.settings.steps
        if wanted is not None and wanted > len(noisy):
            raise RecipeError(
                f"{len(noisy)} of {sampler.steps} sampler steps draw noise, fewer than {wanted}",
                where="method.steps",
                next=f"use {len(noisy)} or less, or raise model.num_inference_steps",
            )

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """One loss for each trained step of each minibatch, with an optimiser step after every minibatch.

        All images are drawn and scored before the first of them. Each loss carries as its divergence the KL divergence
        of the step's Gaussian from the base model's, in nats a dimension, where the sampler has a base model.
        """
        self.check(sampler)
        sampler, base = apart(sampler)
        rollouts = record(sampler, batch, self.settings.minibatches)
        with torch.no_grad():
            scores = [score(rollout.images, rollout.prompts) for rollout in rollouts]
        advantages = self._advantages(batch, rollouts, [of_part.total for of_part in scores])
        gates = [gate_of(of_part) for of_part in scores]
        noisy = sorted(sampler.noisy_steps)
        for _ in range(self.settings.inner_epochs):
            steps = noisy if self.settings.steps is None else sorted(batch.rng.sample(noisy, self.settings.steps))
            for rollout, better, gate in zip(rollouts, advantages, gates, strict=True):
                for number in steps:
                    now = again(sampler, rollout, number).gaussian()
                    value, clipped = self._loss(rollout, number, now, better)
                    yield Loss(
                        value,
                        share=1 / len(steps),
                        step=number == steps[-1],
                        images=len(better),
                        divergence=None if base is None else divergence(sampler, base, rollout, number, now, gate),
                        report={"clipped": clipped},
                    )

    def _advantages(
        self, batch: Batch, rollouts: list[Rollout], rewards: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Of every rollout, (B,); the images of all processes are judged together, in the order of one."""
        prompts = [prompt for together in zip(*(part.prompts for part in rollouts), strict=True) for prompt in together]
        own = torch.stack(rewards, dim=1)  # (B, parts): a batch in its order, `record` deals it out
        parts = batch.ranks.gather(list(zip(map(row_key, prompts), own.flatten().tolist(), strict=True)))
        pooled = [pair for part in parts for pair in part]
        found = self.advantages.of([prompt for prompt, _ in pooled], [reward for _, reward in pooled])
        first = sum(len(part) for part in parts[: batch.ranks.rank])
        bound = self.settings.advantage_clip
        mine = own.new_tensor(found[first : first + own.numel()]).clamp(-bound, bound)
        return mine.view_as(own).unbind(dim=1)

    def _loss(
        self, rollout: Rollout, number: int, now: Gaussian, advantages: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """The clipped loss of a step, (), and the share of images whose ratio lies outside the range."""
        then = log_probability_then(rollout, number)
        ratio = (now.log_probability(rollout.trajectory[number].after) - then).exp()
        return clipped_loss(ratio, advantages.to(ratio), self.settings.clip_range)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """None: the adapter is all that is trained."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """What the advantages remember."""
        return self.advantages.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        self.advantages.load_state_dict(state)


def ddpo(settings: ByPromptSettings) -> PolicyGradient:
    """Advantages by the last rewards of each prompt."""
    return PolicyGradient(settings, ByPrompt(settings.history, settings.least))


def grpo(settings: PolicyGradientSettings) -> PolicyGradient:
    """Advantages by the images of one prompt in a batch."""
    return PolicyGradient(settings, ByGroup())


def clipped_loss(ratio: torch.Tensor, advantages: torch.Tensor, clip_range: float) -> tuple[torch.Tensor, float]:
    """The mean of max(-A ratio, -A clip(ratio)), (), and the share of ratios outside the range.

    Arguments:
        ratio: of the probabilities now and then, (B,), with gradient.
        advantages: A, (B,).
        clip_range: c; the ratio is clipped to 1 - c .. 1 + c.
    """
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    outside = float((ratio.detach() != clipped.detach()).float().mean())
    return torch.maximum(-advantages * ratio, -advantages * clipped).mean(), outside


def divergence(
    sampler: DifferentiableSampler,
    base: BaseModel,
    rollout: Rollout,
    number: int,
    now: Gaussian,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL divergence of a step's Gaussian from the base model's, with gradient, (): nats, mean over all dimensions.

    Both have one deviation, so that it is the squared distance of the means over twice their variance.

    Arguments:
        gate: of the images, `Scores.gate`.
    """
    with torch.no_grad(), base():
        expected = again(sampler, rollout, number).gaussian().mean
    return gated_mean(((now.mean - expected) / now.std).square(), gate) / 2
