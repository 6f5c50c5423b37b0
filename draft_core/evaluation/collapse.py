"""What became of the held-out images: the numbers of one evaluation, and whether a run exploits its reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from draft_core.evaluation.evaluate import Evaluation
from draft_core.evaluation.image_measures import colourfulness, detail, distance, diversity

SURE = 2.0  # standard errors that a change must exceed to be believed
DIVERSITY_FLOOR = 0.5  # of the base model's diversity


@dataclass(frozen=True)
class Look:
    """What was seen of the held-out images after some update, as plain numbers.

    Arguments:
        update: updates made so far; 0 is the base model.
        prompts: P, the number of prompts; every list below is ordered by prompt.
        scores: reward name -> P S scores, before weights and caps.
        diversity: for each prompt the mean distance between its images; empty with one image a prompt.
        drift: for each image the distance from the base model's of the same prompt and seed.
        colour: for each image its colourfulness (Hasler and Suesstrunk 2003), in [0, 1].
        detail: for each image the root mean square of what a 2 x 2 mean removes, in [0, 1].
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
        """Reward name -> mean over all images."""
        return {name: math.fsum(scores) / len(scores) for name, scores in self.scores.items()}

    def total(self, weights: Mapping[str, float]) -> list[float]:
        """The weighted sum of scores, image by image."""
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
        diversity=diversity(images.view(prompts, seeds, *images.shape[1:])).tolist() if seeds > 1 else [],
        drift=distance(images, base.images).tolist(),
        colour=colourfulness(images).tolist(),
        detail=detail(images).tolist(),
        gradients=dict(gradients or {}),
        cosines=dict(cosines or {}),
    )


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
    """Mean difference, paired by image, and its standard error over prompts."""
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
    images, diversity when it fell below half of the base model's, both beyond chance.

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
