"""The numbers of one evaluation, and the rule that says whether a run exploits its reward: read it to change either."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from draft_core.evaluation.evaluate import Evaluation
from draft_core.evaluation.image_measures import colourfulness, detail, distance, diversity

SURE = 2.0  # standard errors that a change must exceed to be believed
DIVERSITY_FLOOR = 0.5  # of the base model's diversity


@dataclass(frozen=True)
class EvalRecord:
    """The numbers of the held-out images after some update.

    Arguments:
        update: updates made so far; 0 is the base model.
        prompts: P, the number of prompts; every list below is ordered by prompt.
        scores: reward name -> P S scores, before weights and caps.
        diversity: for each prompt the mean distance between its images; empty with one image a prompt.
        drift: for each image the distance from the base model's of the same prompt and seed.
        colour: for each image its colourfulness (Hasler and Suesstrunk 2003), in [0, 1].
        detail: for each image the root mean square of what a 2 x 2 mean removes, in [0, 1].
        gradients: reward name -> L2 norm of its own weighted LoRA gradient on one training batch; empty for one reward.
        cosines: "A ~ B" -> cosine between two rewards' LoRA gradients.
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


def eval_record(
    evaluation: Evaluation,
    base: Evaluation,
    update: int,
    *,
    gradients: Mapping[str, float] | None = None,
    cosines: Mapping[str, float] | None = None,
) -> EvalRecord:
    """The numbers of an evaluation, compared with the base model's on the same prompts and seeds."""
    prompts, seeds = len(evaluation.prompts), len(evaluation.seeds)
    images = evaluation.images
    return EvalRecord(
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
    """A mean over prompts, and its standard error: those of one evaluation, or of the difference between two."""

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
    """What an evaluation says of the run so far.

    Arguments:
        lost: what fell too far, each as a sentence's subject with its numbers; empty while all is well.
        collapsed: the trained reward rose meanwhile: it is being exploited.
    """

    lost: tuple[str, ...]
    collapsed: bool


@dataclass(frozen=True)
class CollapseRule:
    """When a run counts as collapsing, and which of its evaluations is the best.

    A held-out score is lost when its mean fell by more than `tolerance` standard deviations between the base model's
    images, diversity when it fell below half of the base model's, both beyond chance. A run collapses when something
    is lost while the trained reward rose beyond chance.

    Arguments:
        trained: name -> weight of the rewards that are trained on; every other score is held out.
        tolerance: in standard deviations of a score between the base model's images.
        on_collapse: "stop" ends the run at a collapse, "warn" lets it go on.
    """

    trained: Mapping[str, float]
    tolerance: float
    on_collapse: Literal["stop", "warn"] = "warn"

    def verdict(self, base: EvalRecord, record: EvalRecord) -> Verdict:
        """What was lost between the base model's evaluation and another of the same prompts and seeds."""
        lost = [self._fall_of_score(name, base, record) for name in base.scores if name not in self.trained]
        lost.append(_fall_of_diversity(base, record))
        found = tuple(sentence for sentence in lost if sentence)
        gain = change(base.total(self.trained), record.total(self.trained), record.prompts)
        return Verdict(found, collapsed=bool(found) and gain.mean > 0 and gain.believed)

    def best(self, records: Sequence[EvalRecord]) -> EvalRecord:
        """The record with the highest trained reward among those that lost nothing.

        Arguments:
            records: the base model's first; it is the best if all others lost something.
        """
        sound = [record for record in records if not self.verdict(records[0], record).lost]
        return max(sound, key=lambda record: over_prompts(record.total(self.trained), record.prompts).mean)

    def ends(self, verdict: Verdict) -> bool:
        """Whether a run with this verdict makes no further updates."""
        return verdict.collapsed and self.on_collapse == "stop"

    def _fall_of_score(self, name: str, base: EvalRecord, record: EvalRecord) -> str | None:
        before = base.scores[name]
        fall = change(before, record.scores[name], record.prompts)
        spread = float(torch.tensor(before, dtype=torch.float64).std(correction=0))
        if not (fall.mean < -self.tolerance * spread and fall.believed):
            return None
        was = over_prompts(before, record.prompts).mean
        return f"{name} fell from {was:.4g} to {was + fall.mean:.4g}"


def _fall_of_diversity(base: EvalRecord, record: EvalRecord) -> str | None:
    if not base.diversity:
        return None
    fall = change(base.diversity, record.diversity, record.prompts)
    was = over_prompts(base.diversity, record.prompts).mean
    if not (was + fall.mean < DIVERSITY_FLOOR * was and fall.believed):
        return None
    return f"diversity fell from {was:.4g} to {was + fall.mean:.4g}"
