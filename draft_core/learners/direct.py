"""The DRaFT family: the gradient of the reward flows through the sampler itself.

Come here for what happens between a step plan and a loss; the plans themselves are made in `registry/methods.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import torch

from draft_core.errors import RewardError
from draft_core.leaps import Leaps
from draft_core.learners.learner import Batch, Loss, Score, gate_of, gated_mean
from draft_core.plan import LastStep, Method, Renoising, StepPlan, Weighing
from draft_core.sampling.rollout import Rollout, StepRecord
from draft_core.sampling.sampler import DifferentiableSampler


class DirectLearner:
    """Gradient ascent on the score, through the steps that a plan records (Clark et al. 2024, arXiv 2309.17400).

    Arguments:
        method: makes the plan of each update, and says what is re-noised; DRaFT-LV with two copies if left out.
    """

    needs_gradient = True
    yields_divergence = True
    gates_divergence = True
    trains_through_sampler = True

    def __init__(self, method: Method | None = None) -> None:
        self.method = LastStep() if method is None else method

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        """Minus the mean score of the samples, and of each re-noised copy of them.

        One optimiser step follows all of them, or with `Renoising.step_each` each of them, until the copies have
        drifted further than `max_drift` from the samples.

        Arguments:
            batch: prompts and generators of the update.
            sampler: of T steps, for which the method makes its plan.
            score: gives the scores, with gradient, of images (N, 3, H, W) in [0, 1] for their N prompts.

        Raises:
            RewardError: if the scores carry no gradient.
        """
        plan, renoising = planned(self.method, sampler, batch.rng), self.method.renoising()
        images = len(batch.generators) * images_per_noise(plan, renoising)
        samples = None
        # prompts -> images, with gradient
        for rollout in sampler.passes(batch.prompts, plan=plan, renoising=renoising, generator=list(batch.generators)):
            # images -> a score for each, (N,)
            scores = score(rollout.images, rollout.prompts, latents=rollout.decoded)
            require_gradient(scores.per_reward)
            total, report = scores.total, {}
            if plan.leaps is not None:
                distances = leap_distances(plan.leaps, rollout.trajectory)
                total = total * closeness(distances, plan.leaps.least).to(total)
                report = {"leap_distance": float(distances.mean())}
            yield Loss(
                -total.mean(),  # higher reward is better
                share=1.0 if renoising.step_each else len(rollout.images) / images,
                step=renoising.step_each,
                images=len(rollout.images),
                divergence=divergence_of(rollout, gate_of(scores)),
                report=report,
            )
            if samples is None:
                samples = rollout.images.detach()
            elif renoising.max_drift is not None:
                distance = (rollout.images.detach() - samples).float().square().mean()
                if float(batch.ranks.mean(distance).sqrt()) > renoising.max_drift:
                    return

    def check(self, sampler: DifferentiableSampler) -> None:
        """Refuses a `sampler` in whose chain the weights of a plan are not known.

        Raises:
            SamplerError: naming the scheduler.
        """
        planned(self.method, sampler, Random(0))

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """None: the adapter is all that is trained."""
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing of `state`: there is none."""


def planned(method: Method, sampler: DifferentiableSampler, rng: Random) -> StepPlan:
    """The plan of one update, with its weights if the method weighs steps by how far they go.

    Raises:
        SamplerError: if it does, and the sampler's steps are of another form.
    """
    plan = method.plan(sampler.steps, rng)
    return method.weighted(plan, lambda: sampler.step_sizes) if isinstance(method, Weighing) else plan


def divergence_of(rollout: Rollout, gate: torch.Tensor | None) -> torch.Tensor | None:
    """How far images of one pass are from the base model, those of gate 0 not counted, (); None without one."""
    if gate is None or rollout.divergence is None:
        return rollout.divergence
    return torch.stack([gated_mean(squares, gate) for squares in rollout.squares]).mean()


def leap_distances(leaps: Leaps, trajectory: Sequence[StepRecord]) -> torch.Tensor:
    """How far each leap ends from where the chain was, mean over dimensions, (leaps, N) for N images."""
    distances = []
    for leap in leaps.leaps:
        reached = trajectory[leap.start].before.float()
        for step, weight in leap.weights.items():
            reached = reached + weight * trajectory[step].prediction.float()
        distances.append((reached - trajectory[leap.end - 1].after.float()).abs().flatten(1).mean(1))
    return torch.stack(distances)


def closeness(distances: torch.Tensor, least: float) -> torch.Tensor:
    """1 / sum over leaps of max(least, distance), (N,), of distances (leaps, N)."""
    return 1 / distances.clamp(min=least).sum(0)


def images_per_noise(plan: StepPlan, renoising: Renoising) -> int:
    """How many images an update makes of one initial noise: the sample, where it is decoded, and its copies."""
    return renoising.copies + (plan.prefix is None)


def require_gradient(per_reward: Mapping[str, torch.Tensor]) -> None:
    """That the scores of every reward can be backpropagated.

    Raises:
        RewardError: naming the first that cannot.
    """
    for name, scores in per_reward.items():
        if not scores.requires_grad:
            raise RewardError(
                "its scores carry no gradient, so nothing would be trained",
                where=f"reward {name!r}",
                next=f"run `draft rewards check {name.split('#')[0]}` and tell its author",
            )
