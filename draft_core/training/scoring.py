"""What the learner's images are scored by: the weighted rewards, each divided by its running scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from statistics import fmean
from typing import Any

import torch

from draft_core.errors import RecipeError
from draft_core.learners.learner import Learner
from draft_core.rewards.normalization import RunningScale
from draft_core.rewards.objective import NOTHING, Objective, Scores
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.batches import Batches
from draft_core.training.distributed import Processes
from draft_core.training.learner_contract import remembered
from draft_core.training.robust import quantile, ranked_too_high, worst_scores
from draft_core.training.settings import TrainSettings
from draft_core.training.step_report import Tally

MEASURED = {"scale": "its scores of a pass are all equal", "gradient": "it gives the images of a pass no gradient"}


class Scoring:
    """The rewards of a training.

    Arguments:
        objective: on its device already.
        normalize: what each reward is divided by: "none", "scale" or "gradient".
        processes: share the scores of a pass.
        gate: by whose ranks the divergence of an image counts, on its device; None where that of all counts.

    Attributes:
        scale: what each reward is divided by; None without normalisation.
    """

    def __init__(
        self, objective: Objective, normalize: str, processes: Processes, gate: Objective | None = None
    ) -> None:
        self.objective, self.gate = objective, gate
        self.processes = processes
        self.scale = None if normalize == "none" else RunningScale(normalize)

    @property
    def divisors(self) -> Mapping[str, float]:
        """Reward name -> what it is divided by now; a name that is missing is divided by nothing."""
        return self.scale.divisors if self.scale else {}

    def score(
        self,
        tally: Tally,
        images: torch.Tensor,
        prompts: Sequence[str],
        *,
        latents: torch.Tensor | None = None,
        known: Mapping[str, torch.Tensor] = NOTHING,
    ) -> Scores:
        """The scores of images, each reward divided by its running scale, and their numbers into `tally`.

        Arguments:
            latents: of the images; no reward looks at them.
            known: reward name -> scores, (N,), in the place of that reward's own.
        """
        if self.scale is not None and self.scale.by == "gradient":
            images = images.float()  # the gradient in float16 images would fall below what float16 holds
        scores, plain = worst_scores(self.objective, images, prompts, known)
        if self.scale is not None:
            self._measure(self.scale, scores, images)
            undivided = [name for name in scores.per_reward if name not in self.divisors]
            tally.notes += [f"reward {name!r} is divided by nothing: {MEASURED[self.scale.by]}" for name in undivided]
        if self.scale is not None or self.objective.quantiles:
            scores = Scores(self.total(scores.per_reward), scores.per_reward)
        own = Scores(scores.total, {**scores.per_reward, **plain})
        tally.add_scores(own, images, prompts, asked=bool(scores.per_reward.keys() - known.keys()))
        if plain:
            tally.add_drops({name: values - scores.per_reward[name].detach() for name, values in plain.items()})
        if self.gate is None:
            return scores
        gate = self._gate(self.gate, scores.total, images, prompts)
        tally.reported.append((len(gate), {"kl_gate": float(gate.mean())}))
        return replace(scores, gate=gate)

    def _gate(self, gate: Objective, total: torch.Tensor, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """1 for images that training ranks too high among those of all processes, and 0 for others, (N,)."""
        with torch.no_grad():
            others = gate(images.detach(), prompts).per_reward.values()
        pooled = self.processes.gather([scores.tolist() for scores in (total.detach(), *others)])
        trained, *rest = ([score for part in pooled for score in part[place]] for place in range(len(pooled[0])))
        if len(trained) < 2:
            raise no_rank()
        first = sum(len(part[0]) for part in pooled[: self.processes.rank])
        return total.new_tensor(ranked_too_high(trained, rest)[first : first + len(total)])

    def total(self, per_reward: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of some rewards' scores of a pass, each divided and capped as this training does, (N,)."""
        quantiles = {name: share for name, share in self.objective.quantiles.items() if name in per_reward}
        caps = dict(self.objective.caps)
        if quantiles:  # of the images of all processes
            pooled = self.processes.gather({name: per_reward[name].tolist() for name in quantiles})
            for name, share in quantiles.items():
                caps[name] = quantile([score for part in pooled for score in part[name]], share)
        return self.objective.total(per_reward, self.divisors, caps)

    def _measure(self, scale: RunningScale, scores: Scores, images: torch.Tensor) -> None:
        per_reward = scores.per_reward
        if scale.by == "scale":
            pooled = self.processes.gather({name: values.tolist() for name, values in per_reward.items()})
            per_reward = {name: torch.tensor([x for part in pooled for x in part[name]]) for name in per_reward}
        seen = self.processes.gather(scale.measure(per_reward, images))
        scale.update({name: fmean(size[name] for size in seen) for name in scores.per_reward})

    def state(self) -> dict[str, Any] | None:
        """What `restore` takes."""
        return self.scale.state() if self.scale else None

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continues from a `state`."""
        if self.scale is not None:
            self.scale.restore(state or {})


def no_rank() -> RecipeError:
    """What is said of a pass of one image that is to be ranked."""
    return RecipeError(
        "one image alone has no rank",
        where="regularizers.kl_gate",
        next="score two or more images at once: raise train.batch_size, or lower method.minibatches",
    )


def reward_gradients(
    scoring: Scoring,
    learner: Learner,
    sampler: DifferentiableSampler,
    batches: Batches,
    update: int,
    parameters: Sequence[torch.nn.Parameter],
    loss_scale: float,
) -> dict[str, torch.Tensor]:
    """Reward name -> its own gradient in the parameters on the batch after `update` updates, weighted, flat.

    Of the first scores that carry a gradient; empty where the learner makes none. It takes a rollout and one backward
    pass for each reward, and changes nothing.
    """
    running, before = scoring.state(), remembered(learner)
    sampler = copy.copy(sampler)
    sampler.kl_relative = 0.0  # the rewards' own gradient, without what holds it back
    with_gradient: list[Scores] = []

    def score(images: torch.Tensor, prompts: Sequence[str], **more: Any) -> Scores:
        scores = scoring.score(Tally(), images, prompts, **more)
        if scores.total.requires_grad:
            with_gradient.append(scores)
        return scores

    (batch,) = islice(batches.draw(update), 1)
    losses = learner.losses(batch, sampler, score)
    while not with_gradient and next(losses, None) is not None:
        pass
    gradients = {}
    for name, scores in (with_gradient[0].per_reward if with_gradient else {}).items():
        if not scores.requires_grad:
            continue
        alone = scoring.total({name: scores}).mean()
        gradients[name] = scoring.processes.mean(_scaled(alone, parameters, loss_scale, scoring.processes))
    scoring.restore(running)
    learner.load_state_dict(before)
    return gradients


def norms_and_cosines(flat: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Name -> norm of flat gradients, and "first ~ second" -> cosine of each pair; NaN where one of them is zero."""
    norms, names = {name: float(grad.norm()) for name, grad in flat.items()}, list(flat)
    cosines = {
        f"{first} ~ {second}": float(torch.nn.functional.cosine_similarity(flat[first], flat[second], dim=0))
        if norms[first] and norms[second]
        else math.nan
        for index, first in enumerate(names)
        for second in names[index + 1 :]
    }
    return norms, cosines


def _scaled(
    value: torch.Tensor, parameters: Sequence[torch.nn.Parameter], factor: float, processes: Processes
) -> torch.Tensor:
    """The gradient of a value taken of `factor` times it, or of less where that overflows in any process."""
    while True:
        grads = torch.autograd.grad(value * factor, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        whole = [torch.zeros_like(parameter) if grad is None else grad for grad, parameter in pairs]
        flat = torch.cat([grad.flatten() for grad in whole]) / factor
        if factor == 1.0 or all(processes.gather(bool(flat.isfinite().all()))):
            return flat
        factor = max(1.0, factor / 16)


def check_images(
    settings: TrainSettings,
    images_per_prompt: int,
    processes: int,
    quantiles: Collection[str] = (),
    *,
    ranked: bool = False,
) -> None:
    """That a pass holds images enough, and that how many each prompt has is said once.

    Arguments:
        images_per_prompt: that a call of the pipeline makes.
        processes: that share a pass.
        quantiles: names of rewards whose cap is one of the scores of a pass.
        ranked: whether the images of a pass are ranked.

    Raises:
        RecipeError: if rewards are divided by the spread of a pass of one image, or capped at its quantile, or ranks
            taken of it, or both the settings and the call make several images of each prompt.
    """
    if settings.images_per_prompt > 1 and images_per_prompt > 1:
        raise RecipeError(
            f"the call makes {images_per_prompt} images of each prompt already",
            where="train.images_per_prompt",
            next="leave one of them out; train.images_per_prompt counts within train.batch_size",
        )
    several = settings.batch_size * images_per_prompt * processes
    if quantiles and several < 2:
        raise RecipeError(
            "it is a quantile of the scores of a pass, and a pass of one image has none",
            where=f"cap of reward {next(iter(quantiles))!r}",
            next="raise train.batch_size to 2 or more, or give the score itself",
        )
    if ranked and several < 2:
        raise no_rank()
    if settings.normalize == "scale" and several < 2:
        raise RecipeError(
            "scale divides by the spread of a pass's scores, and a pass of one image has none",
            where="train.normalize",
            next="raise train.batch_size to 2 or more, or use gradient, or none",
        )
