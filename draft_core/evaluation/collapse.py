"""The numbers of one evaluation, and the rule that says whether a run exploits its reward: read it to change either."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from draft_core.evaluation.image_measures import colourfulness, detail, distance, diversity

if TYPE_CHECKING:  # it brings diffusers, which reading a run does without
    from draft_core.evaluation.evaluate import Evaluation

SURE = 2.0  # standard errors that a change must exceed to be believed
# Of fewer prompts, chance alone moves a mean by more than that in one case of three (2 prompts) to seven (4), by
# Student's t; of many, in one of twenty.
FEW_PROMPTS = 5
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
        movement: for each video the mean size of the difference of two frames in a row, in [0, 1]; empty of images.
        flicker: for each video the mean size of the second difference of three frames in a row; empty of images.
        gradients: reward name -> L2 norm of its own weighted LoRA gradient on one training batch; empty for one reward.
        cosines: "A ~ B" -> cosine between two rewards' LoRA gradients.
        divisors: reward name -> what normalisation divided it by at this update; empty without normalisation.
        components: "REWARD: PART" -> P S values, of rewards that tell what their score is made of; nothing is judged
            by them.
    """

    update: int
    prompts: int
    scores: Mapping[str, Sequence[float]]
    diversity: Sequence[float]
    drift: Sequence[float]
    colour: Sequence[float]
    detail: Sequence[float]
    movement: Sequence[float] = ()
    flicker: Sequence[float] = ()
    gradients: Mapping[str, float] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)
    divisors: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all images."""
        return {name: math.fsum(scores) / len(scores) for name, scores in self.scores.items()}

    def measures(self) -> dict[str, Sequence[float]]:
        """What of the images may fall -> its values; diversity only where a prompt has several images."""
        values = {
            "diversity": self.diversity,
            "colour": self.colour,
            "detail": self.detail,
            "movement": self.movement,
        }
        return {name: numbers for name, numbers in values.items() if numbers}


def eval_record(
    evaluation: Evaluation,
    base: Evaluation,
    update: int,
    *,
    gradients: Mapping[str, float] | None = None,
    cosines: Mapping[str, float] | None = None,
    divisors: Mapping[str, float] | None = None,
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
        **{name: values.tolist() for name, values in evaluation.motion.items()},
        gradients=dict(gradients or {}),
        cosines=dict(cosines or {}),
        divisors=dict(divisors or {}),
        components={name: values.tolist() for name, values in evaluation.components.items()},
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


def extent(prompts: int) -> str:
    """How far a believed change went, in words: "beyond chance", unless the prompts are too few to say so."""
    return "beyond chance" if prompts >= FEW_PROMPTS else f"by more than {SURE:g} standard errors of {prompts} prompts"


def too_few(prompts: int) -> str:
    """What is said of an evaluation with less than `FEW_PROMPTS`."""
    return f"{prompts} prompts are too few to tell a change from chance: evaluate {FEW_PROMPTS} or more"


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says of the run so far.

    Arguments:
        lost: what fell too far, each as a sentence's subject with its numbers; empty while all is well.
        collapsed: the trained reward rose meanwhile: it is being exploited.
        fell: every score, trained or not, and every measure of the images that fell beyond chance, as in `lost`, with
            the change in percent; those of `lost` first. A trained score of negative weight is named when it rose.
        rose: likewise what rose beyond chance; a trained score of negative weight is named when it fell.
        unjudged: what cannot be judged, and why, a sentence each.
    """

    lost: tuple[str, ...]
    collapsed: bool
    fell: tuple[str, ...] = ()
    rose: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()


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
        caps: name -> score above which a trained reward counts no more.
    """

    trained: Mapping[str, float]
    tolerance: float
    on_collapse: Literal["stop", "warn"] = "warn"
    caps: Mapping[str, float] = field(default_factory=dict)

    def total(self, record: EvalRecord, divisors: Mapping[str, float]) -> list[float]:
        """The trained reward of each image, as training adds it up.

        Arguments:
            divisors: reward name -> what its capped scores are divided by; 1 where a name is missing.
        """
        columns = [
            [
                weight / divisors.get(name, 1.0) * min(score, self.caps.get(name, math.inf))
                for score in record.scores[name]
            ]
            for name, weight in self.trained.items()
        ]
        return [sum(row) for row in zip(*columns, strict=True)]

    def gain(self, base: EvalRecord, record: EvalRecord) -> tuple[float, Change]:
        """The base model's mean trained reward, and its change, both in the units of the later evaluation."""
        before, after = (self.total(seen, record.divisors) for seen in (base, record))
        return over_prompts(before, record.prompts).mean, change(before, after, record.prompts)

    def verdict(self, base: EvalRecord, record: EvalRecord) -> Verdict:
        """What changed between the base model's evaluation and another of the same prompts and seeds."""
        measures = record.measures()
        pairs = {name: (scores, record.scores[name]) for name, scores in base.scores.items()}
        pairs |= {name: (values, measures[name]) for name, values in base.measures().items()}
        moves = {name: move for name, pair in pairs.items() if (move := _move(name, *pair, record.prompts))}
        found = {name: move for name, move in moves.items() if move.is_rise == (self.trained.get(name, 1.0) < 0)}
        held_out = [name for name in base.scores if name not in self.trained]
        lost = [name for name in held_out if name in found and self._is_lost(base.scores[name], found[name])]
        if "diversity" in measures and "diversity" in found and found["diversity"].share < DIVERSITY_FLOOR:
            lost.append("diversity")
        gained = self.gain(base, record)[1]
        return Verdict(
            lost=tuple(str(found[name]) for name in lost),
            collapsed=bool(lost) and gained.mean > 0 and gained.believed,
            fell=tuple(str(found[name]) for name in [*lost, *(name for name in found if name not in lost)]),
            rose=tuple(str(move) for name, move in moves.items() if name not in found),
            unjudged=tuple(_unjudged(base, record)),
        )

    def best(self, records: Sequence[EvalRecord]) -> EvalRecord:
        """The record with the highest trained reward among those that lost nothing.

        Rewards that are normalised are compared by what they were divided by at the first evaluation after an update,
        so that the choice between two records never changes.

        Arguments:
            records: the base model's first; it is the best if all others lost something.
        """
        divisors = next((record.divisors for record in records if record.divisors), {})
        means = {id(seen): over_prompts(self.total(seen, divisors), seen.prompts).mean for seen in records}
        sound = [seen for seen in records if math.isfinite(means[id(seen)]) and not self.verdict(records[0], seen).lost]
        return max(sound or records[:1], key=lambda seen: means[id(seen)])

    def ends(self, verdict: Verdict) -> bool:
        """Whether a run with this verdict makes no further updates."""
        return verdict.collapsed and self.on_collapse == "stop"

    def blindness(self, *, prompts: int, images_per_prompt: int, scores: Collection[str]) -> str | None:
        """Why no evaluation can count as a collapse, or none for sure, a sentence; None if one can.

        Arguments:
            scores: names of all that an evaluation scores.
        """
        if prompts < 2:
            return "the watch against collapse is off: one prompt gives no error of a mean; evaluate two or more"
        if images_per_prompt < 2 and not set(scores) - set(self.trained):
            return (
                "the watch against collapse is off: no score is held out and diversity is not measured; name a reward "
                "under metrics, or set evaluation.images_per_prompt to 2 or more"
            )
        if prompts < FEW_PROMPTS:
            return f"{too_few(prompts)}; the watch against collapse may be wrong"
        return None

    def _is_lost(self, before: Sequence[float], fall: _Move) -> bool:
        spread = float(torch.tensor(before, dtype=torch.float64).std(correction=0))
        return fall.change.mean < -self.tolerance * spread


@dataclass(frozen=True)
class _Move:
    """A mean that changed beyond chance."""

    name: str
    before: Change
    change: Change

    @property
    def is_rise(self) -> bool:
        return self.change.mean > 0

    @property
    def after(self) -> float:
        return self.before.mean + self.change.mean

    @property
    def share(self) -> float:
        """What is left of it."""
        return self.after / self.before.mean if self.before.mean else math.nan

    def __str__(self) -> str:
        by = percent(self.before, self.change)
        word = "rose" if self.is_rise else "fell"
        return f"{self.name} {word} from {self.before.mean:.4g} to {self.after:.4g}" + (
            "" if by is None else f" ({by:+.3g} %)"
        )


def percent(before: Change, change: Change) -> float | None:
    """A change in percent of the magnitude before; None where that says nothing.

    It says nothing of a mean that cannot be told from zero, nor where the change crosses zero.
    """
    after = before.mean + change.mean
    is_zero = before.mean == 0 or abs(before.mean) <= SURE * before.error
    return None if is_zero or before.mean * after < 0 else 100 * change.mean / abs(before.mean)


def _move(name: str, before: Sequence[float], after: Sequence[float], prompts: int) -> _Move | None:
    """How far a mean moved, if it did beyond chance."""
    found = change(before, after, prompts)
    return _Move(name, over_prompts(before, prompts), found) if found.believed else None


def _unjudged(base: EvalRecord, record: EvalRecord) -> Iterator[str]:
    if record.prompts < 2:
        yield "nothing can be judged: one prompt gives no error of a mean"
    for name in base.scores:
        values = [*base.scores[name], *record.scores[name]]
        if bad := sum(not math.isfinite(value) for value in values):
            yield f"{name} cannot be judged: {bad} of its {len(values)} scores are not finite"
