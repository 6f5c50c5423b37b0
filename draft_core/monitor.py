"""What a run is judged by: pictures of held-out prompts from fixed seeds, their scores, and what became of them.

A reward that is optimised says nothing of what was lost. So at fixed intervals the same pictures are drawn again
and scored by rewards that are not trained on, and their diversity, their distance from the base model's, their
colour and their detail are measured. Tensors wing. May import: objective, plan, sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from draft_core.objective import Objective
from draft_core.plan import StepPlan
from draft_core.sampler import DifferentiableSampler

LEVELS = 4  # of the pyramid in which pictures are compared: full size, a half, a quarter, an eighth
SURE = 2.0  # standard errors that a change must exceed to be believed
DIVERSITY_FLOOR = 0.5  # of the base model's diversity


@dataclass(frozen=True)
class Evaluation:
    """Pictures of some prompts and what each reward says of them.

    Arguments:
        prompts: P prompts.
        seeds: S seeds; every prompt has one picture from each.
        images: (P S, 3, H, W) in [0, 1] on the CPU, those of one prompt side by side; of a video its middle frame.
        scores: reward name -> (P S,) before its weight.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor
    scores: Mapping[str, Tensor]

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all pictures."""
        return {name: float(scores.mean()) for name, scores in self.scores.items()}


def evaluate(
    sampler: DifferentiableSampler,
    rewards: Objective,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = lambda part: [part],
) -> Evaluation:
    """The evaluation of the pipeline as it is now; builds no graph.

    A picture depends on its prompt and its seed alone: plain diffusers makes the same one from
    `pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), ...)`.

    Arguments:
        batch_size: pictures made in one pass.
        autocast: makes the precision context that each pass runs in.
        progress: called with how many pictures are done, and of how many.
        share: (place, count): this process makes every `count`-th picture, from number `place` on; all make equally
            many, some of them twice where they do not come out even.
        gather: gives what each process made, by place.
    """
    everything = [(prompt, seed) for prompt in prompts for seed in seeds]
    place, count = share
    rounds = math.ceil(len(everything) / count)
    pairs = [everything[(turn * count + place) % len(everything)] for turn in range(rounds)]
    plan = StepPlan(sampler.steps, frozenset())
    images, scores = [], []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        names = [prompt for prompt, _ in batch]
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in batch]
        with torch.no_grad(), autocast():
            samples = sampler(names, plan=plan, generator=generators).images
            scores.append(rewards(samples, names).each)
        images.append(_still(samples).float().cpu())
        progress(min((first + len(batch)) * count, len(everything)), len(everything))
    joined = {name: torch.cat([one[name] for one in scores]).cpu() for name in scores[0]}
    parts = gather((torch.cat(images), joined))
    return Evaluation(
        tuple(prompts),
        tuple(seeds),
        _dealt([pictures for pictures, _ in parts], len(everything)),
        {name: _dealt([each[name] for _, each in parts], len(everything)) for name in joined},
    )


def _dealt(parts: Sequence[Tensor], total: int) -> Tensor:
    """The first `total` of what was dealt out by turns, in its order again."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:total]


def _still(images: Tensor) -> Tensor:
    """Pictures as they are; of videos (N, F, 3, H, W) the middle frame."""
    return images if images.ndim == 4 else images[:, images.shape[1] // 2]


@dataclass(frozen=True)
class Look:
    """What was seen of the held-out pictures after some update, as plain numbers.

    Arguments:
        update: updates made so far; 0 is the base model.
        prompts: P, the number of prompts; every list below is ordered by prompt.
        scores: reward name -> P S scores, before weights and caps.
        diversity: for each prompt the mean distance between its pictures; empty with one picture a prompt.
        drift: for each picture the distance from the base model's of the same prompt and seed.
        colour: for each picture its colourfulness (Hasler and Suesstrunk 2003), in [0, 1].
        detail: for each picture the root mean square of what a 2 x 2 mean removes, in [0, 1].
        gradients: reward name -> L2 norm of its own weighted LoRA gradient on one training batch; empty for one reward.
        cosines: "one ~ other" -> cosine between two rewards' LoRA gradients.
    """

    update: int
    prompts: int
    scores: Mapping[str, Sequence[float]]
    diversity: Sequence[float]
    drift: Sequence[float]
    colour: Sequence[float]
    detail: Sequence[float]
    gradients: Mapping[str, float] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all pictures."""
        return {name: math.fsum(scores) / len(scores) for name, scores in self.scores.items()}

    def total(self, weights: Mapping[str, float]) -> list[float]:
        """The weighted sum of scores, picture by picture."""
        columns = [[weights[name] * score for score in self.scores[name]] for name in weights]
        return [sum(row) for row in zip(*columns, strict=True)]


def look_at(
    evaluation: Evaluation,
    base: Evaluation,
    update: int,
    *,
    gradients: Mapping[str, float] | None = None,
    cosines: Mapping[str, float] | None = None,
) -> Look:
    """The numbers of an evaluation, compared with the base model's on the same prompts and seeds."""
    prompts, seeds = len(evaluation.prompts), len(evaluation.seeds)
    images = evaluation.images
    return Look(
        update=update,
        prompts=prompts,
        scores={name: scores.tolist() for name, scores in evaluation.scores.items()},
        diversity=_diversity(images.view(prompts, seeds, *images.shape[1:])).tolist() if seeds > 1 else [],
        drift=distance(images, base.images).tolist(),
        colour=colourfulness(images).tolist(),
        detail=detail(images).tolist(),
        gradients=dict(gradients or {}),
        cosines=dict(cosines or {}),
    )


# What is measured of pictures


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Root mean square difference (N,) of pictures (N, 3, H, W) in [0, 1], averaged over a pyramid of sizes.

    Coarse levels weigh shape and colour as much as fine ones weigh edges; it needs no network and no download.
    """
    levels = []
    for _ in range(LEVELS):
        levels.append((one - other).square().flatten(1).mean(1).sqrt())
        if min(one.shape[-2:]) < 2:
            break
        one, other = avg_pool2d(one, 2), avg_pool2d(other, 2)
    return torch.stack(levels).mean(0)


def colourfulness(images: Tensor) -> Tensor:
    """Hasler and Suesstrunk 2003, equation 6.12, (N,), of pictures (N, 3, H, W) in [0, 1]."""
    red, green, blue = images.flatten(2).unbind(1)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = (red_green.var(1, correction=0) + yellow_blue.var(1, correction=0)).sqrt()
    mean = (red_green.mean(1).square() + yellow_blue.mean(1).square()).sqrt()
    return spread + 0.3 * mean


def detail(images: Tensor) -> Tensor:
    """Root mean square (N,) of what a mean over 2 x 2 pixels removes: edges, texture, noise."""
    smooth = interpolate(avg_pool2d(images, 2, ceil_mode=True), images.shape[-2:], mode="nearest")
    return (images - smooth).square().flatten(1).mean(1).sqrt()


def _diversity(images: Tensor) -> Tensor:
    """Mean distance (P,) between the pictures of each prompt, (P, S, 3, H, W)."""
    first, second = torch.triu_indices(images.shape[1], images.shape[1], offset=1)
    return torch.stack([distance(pictures[first], pictures[second]).mean() for pictures in images])


# What follows from it


@dataclass(frozen=True)
class Change:
    """A mean over prompts, and its standard error: those of one look, or of the difference between two."""

    mean: float
    error: float

    @property
    def believed(self) -> bool:
        """Whether it is more than chance."""
        return abs(self.mean) > SURE * self.error


def over_prompts(values: Sequence[float], prompts: int) -> Change:
    """Mean of P S values and its standard error over the P prompts; NaN for one prompt."""
    means = torch.tensor(values, dtype=torch.float64).view(prompts, -1).mean(1)
    error = float(means.std()) / math.sqrt(prompts) if prompts > 1 else math.nan
    return Change(float(means.mean()), error)


def change(before: Sequence[float], after: Sequence[float], prompts: int) -> Change:
    """Mean difference, paired by picture, and its standard error over prompts."""
    return over_prompts([new - old for old, new in zip(before, after, strict=True)], prompts)


@dataclass(frozen=True)
class Verdict:
    """What a look says of the run so far.

    Arguments:
        lost: what fell too far, each as a sentence's subject with its numbers; empty while all is well.
        collapsed: the trained reward rose meanwhile: it is being exploited.
    """

    lost: tuple[str, ...]
    collapsed: bool


def judge(base: Look, look: Look, trained: Mapping[str, float], *, tolerance: float) -> Verdict:
    """Whether the trained rewards rise while what is not trained on falls.

    A held-out score is lost when its mean fell by more than `tolerance` standard deviations between the base model's
    pictures, diversity when it fell below half of the base model's, both beyond chance.

    Arguments:
        trained: name -> weight of the rewards that are trained on; every other score is held out.
    """
    lost = []
    for name, before in base.scores.items():
        if name in trained:
            continue
        fall = change(before, look.scores[name], look.prompts)
        spread = float(torch.tensor(before, dtype=torch.float64).std(correction=0))
        if fall.mean < -tolerance * spread and fall.believed:
            was = over_prompts(before, look.prompts).mean
            lost.append(f"{name} fell from {was:.4g} to {was + fall.mean:.4g}")
    if base.diversity:
        fall = change(base.diversity, look.diversity, look.prompts)
        was = over_prompts(base.diversity, look.prompts).mean
        if was + fall.mean < DIVERSITY_FLOOR * was and fall.believed:
            lost.append(f"diversity fell from {was:.4g} to {was + fall.mean:.4g}")
    gain = change(base.total(trained), look.total(trained), look.prompts)
    return Verdict(tuple(lost), collapsed=bool(lost) and gain.mean > 0 and gain.believed)


def best_look(looks: Sequence[Look], trained: Mapping[str, float], *, tolerance: float) -> Look:
    """The look with the highest trained reward among those that lost nothing; the base model's if all others did."""
    base = looks[0]
    sound = [look for look in looks if not judge(base, look, trained, tolerance=tolerance).lost]
    return max(sound, key=lambda look: over_prompts(look.total(trained), look.prompts).mean)
