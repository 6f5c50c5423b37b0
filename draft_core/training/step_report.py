"""What one update did, as plain numbers, and how they are gathered while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from draft_core.errors import DraftError
from draft_core.learners.learner import ADAPTER, Loss
from draft_core.rewards.objective import Scores

Numbers = Mapping[str, float]

ZERO = "a weight is 0, a cap is reached, or the reward does not depend on the images"


@dataclass(frozen=True)
class StepReport:
    """What one update did, over all processes.

    Arguments:
        update: how many updates have been made, this one included.
        loss: mean loss of the adapter over images, plus the weighted penalties; for the methods of the DRaFT family
            minus the mean total score, plus the weighted penalties.
        reward: mean weighted total score over the update's images, caps applied; higher is better. NaN where the
            method scores no image.
        scores: reward name -> mean score before its weight, of a reward with a surrogate what that gave; empty where
            the method scores no image.
        grad_norm: L2 norm of the adapter's gradient before clipping, mean over its optimiser steps.
        learning_rate: the rate this update was made with.
        seconds: wall time of the update.
        penalties: regulariser -> its value before its weight, mean over images.
        optimizer_steps: how many optimiser steps of the adapter the update took: more than one only where the method
            asks for it, fewer where some were skipped.
        skipped: why optimiser steps were skipped, one sentence each; empty when all is well.
        notes: what else a person should know, one sentence each: a gradient of exactly zero, a reward that
            normalisation divides by nothing.
        learner: further numbers that the method reports, name -> mean over images; and "drop of NAME", how far a reward
            falls to its worst near the images, where training looks for that.
        reward_queries: images that the rewards scored, also for a surrogate or to find the worst near an image, those
            of a round that was thrown away included; evaluations are not counted.
    """

    update: int
    loss: float
    reward: float
    scores: Numbers
    grad_norm: float
    learning_rate: float
    seconds: float
    penalties: Numbers = field(default_factory=dict)
    optimizer_steps: int = 1
    skipped: tuple[str, ...] = ()
    learner: Numbers = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reward_queries: int = 0

    @property
    def headline(self) -> str:
        """Its reward, or its loss where no image was scored."""
        return f"reward {self.reward:.4g}" if self.scores else f"loss {self.loss:.4g}"


@dataclass(frozen=True)
class Mark:
    """How far a `Tally` had come between two rounds: the lengths of its lists, and the problems that stood then."""

    scored: int
    losses: int
    reported: int
    yielded: int
    problems: dict[str, list[str]]


@dataclass
class Tally:
    """What the batches of one update gave, in one process: what its report is made of.

    Attributes:
        scored: for every call of the score, the number of images, the mean total and the mean of each reward.
        losses: for every loss of the adapter, its number of images, its value and its penalties.
        reported: for every loss that reports numbers, its number of images and these.
        problems: what was not finite since a part's last optimiser step, by the part.
        unassigned: what was not finite among scores since the last loss; the next loss is of them.
        yielded: how many losses there were, of all parts.
        queries: how many images were scored.
    """

    scored: list[tuple[int, float, Numbers]] = field(default_factory=list)
    losses: list[tuple[int, float, Numbers]] = field(default_factory=list)
    reported: list[tuple[int, Numbers]] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    unassigned: list[str] = field(default_factory=list)
    yielded: int = 0
    queries: int = 0
    grad_norms: list[float] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_scores(self, scores: Scores, images: torch.Tensor, prompts: Sequence[str], *, asked: bool = True) -> None:
        """The scores of some images, and what is not finite: the images, or else their scores.

        Arguments:
            asked: whether a reward itself gave one of them.
        """
        per_reward = {name: values.detach() for name, values in scores.per_reward.items()}
        means = {name: float(values.mean()) for name, values in per_reward.items()}
        self.queries += len(scores.total) * asked
        self.scored.append((len(scores.total), float(scores.total.detach().mean()), means))
        sound = images.detach().isfinite().flatten(1).all(1)
        for index in (~sound).nonzero().flatten().tolist():
            self.unassigned.append(f"the image of the prompt {prompts[index]!r} is not finite")
        for name, values in per_reward.items():
            for index in (sound.to(values.device) & ~values.isfinite()).nonzero().flatten().tolist():
                self.unassigned.append(
                    f"reward {name!r} of the prompt {prompts[index]!r} became {float(values[index])}"
                )

    def add_drops(self, drops: Mapping[str, torch.Tensor]) -> None:
        """How far each reward falls to its worst near the images, (N,); to score that takes each image once more."""
        counts = {len(values) for values in drops.values()}
        self.reported.append((max(counts), {f"drop of {name}": float(drop.mean()) for name, drop in drops.items()}))
        self.queries += max(counts)

    def require_divergence(self) -> None:
        """Raises a `DraftError` if no loss carries its divergence from the base model."""
        if not any("kl" in penalties for _, _, penalties in self.losses):
            raise DraftError(
                "no loss carries a divergence, though the method says that they do",
                where="regularizers.kl",
                next="leave it out, and tell the method's author",
            )

    def add_loss(self, loss: Loss, penalties: Numbers, *, of_adapter: bool) -> None:
        """The numbers of one loss, and what is not finite among them."""
        value = float(loss.value.detach())
        if of_adapter:
            self.losses.append((loss.images, value, penalties))
        if loss.report:
            self.reported.append((loss.images, dict(loss.report)))
        self.notes += loss.notes
        self.queries += loss.queries
        self.yielded += 1
        problems = self.problems.setdefault(loss.of, [])
        problems += self.unassigned
        self.unassigned = []
        problems += [f"the penalty {name!r} became {x}" for name, x in penalties.items() if not math.isfinite(x)]
        if not problems and not math.isfinite(value):
            problems.append(f"the loss of {loss.of!r} became {value}")

    def problems_of(self, part: str) -> list[str]:
        """What stands against the coming optimiser step of a part."""
        return [*self.problems.get(part, ()), *self.unassigned]

    def mark(self) -> Mark:
        """What there is now, for `back_to`."""
        problems = {part: list(found) for part, found in self.problems.items()}
        return Mark(len(self.scored), len(self.losses), len(self.reported), self.yielded, problems)

    def back_to(self, mark: Mark) -> None:
        """Forgets what was added since `mark`."""
        del self.scored[mark.scored :], self.losses[mark.losses :], self.reported[mark.reported :]
        self.yielded, self.problems, self.unassigned = mark.yielded, mark.problems, []

    def close_step(self, problems: Sequence[str], grad_norm: float, *, of: str) -> None:
        """One optimiser step of a part, skipped if there are problems."""
        self.problems.pop(of, None)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self.skipped.append(f"{problems[0]}{more}")
            return
        if grad_norm == 0.0:
            self.notes.append(f"the gradient of the {of} is exactly zero, so nothing is learnt: {ZERO}")
        if of == ADAPTER:
            self.grad_norms.append(grad_norm)

    def merge(self, tallies: Sequence[Tally]) -> None:
        """Makes this the tally of all processes; what concerns optimiser steps is the same in all."""
        self.scored = [row for tally in tallies for row in tally.scored]
        self.losses = [row for tally in tallies for row in tally.losses]
        self.reported = [row for tally in tallies for row in tally.reported]
        self.notes = [note for tally in tallies for note in tally.notes]
        self.queries = sum(tally.queries for tally in tallies)

    def report(self, update: int, regularizers: Numbers, *, learning_rate: float, seconds: float) -> StepReport:
        """The report of the update."""
        reward = _mean([(count, {"total": total}) for count, total, _ in self.scored]).get("total", math.nan)
        loss = _mean([(count, {"loss": value}) for count, value, _ in self.losses]).get("loss", math.nan)
        penalties = _mean([(count, values) for count, _, values in self.losses])
        return StepReport(
            update=update,
            loss=sum(regularizers[name] * value for name, value in penalties.items()) + loss,
            reward=reward,
            scores=_mean([(count, means) for count, _, means in self.scored]),
            grad_norm=fmean(self.grad_norms) if self.grad_norms else math.nan,
            learning_rate=learning_rate,
            seconds=seconds,
            penalties=penalties,
            optimizer_steps=len(self.grad_norms),
            skipped=tuple(self.skipped),
            learner=_mean(self.reported),
            notes=tuple(dict.fromkeys(self.notes)),
            reward_queries=self.queries,
        )


def _mean(rows: Sequence[tuple[int, Numbers]]) -> dict[str, float]:
    """Mean over images, name by name, of the rows that have the name."""
    names = dict.fromkeys(name for _, values in rows for name in values)
    found = {name: [(count, values[name]) for count, values in rows if name in values] for name in names}
    return {
        name: sum(count * value for count, value in pairs) / images
        for name, pairs in found.items()
        if (images := sum(count for count, _ in pairs))
    }
