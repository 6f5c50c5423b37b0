"""Forecast of the methods that ask for scores alone: samples without gradient, then single steps with it.

Come here for what `ddpo`, `grpo` and `importance` cost. Their steps are taken by replays of the pipeline's call, each
of which encodes its prompts again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from draft_core.cost.probe import RECOMPUTING, Probe, Times
from draft_core.cost.work import Calls, Seconds
from draft_core.learners.advantages import ByPrompt
from draft_core.learners.learner import Learner
from draft_core.learners.policy_gradient import PolicyGradient
from draft_core.learners.weighted_regression import ACCEPTED, WeightedRegression
from draft_core.training.trainer import Trainer


@dataclass(frozen=True)
class Phase:
    """Steps of one kind in a pass.

    Arguments:
        steps: sampler steps for which the denoiser is asked.
        images: in each of them.
        runs: of the pipeline's call, in which they are taken.
        with_grad: whether they are recorded.
    """

    steps: int
    images: float
    runs: int
    with_grad: bool = False


class WorkByScores:
    """What an update asks that is made of such phases.

    Arguments:
        phases: of one pass.
    """

    may_be_halved = False  # the images of a pass are compared with each other

    def __init__(self, trainer: Trainer, phases: list[Phase]) -> None:
        self.trainer = trainer
        self.phases = phases
        self.probe = Probe(trainer)
        self.accumulation = trainer.batches.accumulation
        self.images = trainer.batch_size * trainer.batches.images_per_prompt

    def times(self) -> Times:
        """Of one image that is drawn and scored without gradient, and of one recorded denoiser call."""
        self.probe.timed_scores()  # the first one sets up caches
        return self.probe.timed_scores()

    def calls(self, calls_a_step: float) -> Calls:
        """Exact where each step calls the denoiser equally often, and as many samples are accepted as expected."""

        def counted(*, with_grad: bool) -> int:
            steps = sum(phase.steps for phase in self.phases if phase.with_grad == with_grad)
            return self.accumulation * round(calls_a_step * steps)

        recorded, images = counted(with_grad=True), self.accumulation * self.images
        recomputed = recorded if self.trainer.sampler.gradient_checkpointing in RECOMPUTING else 0
        return Calls(counted(with_grad=False), recorded, recomputed, decoded=images, scored=images)

    def seconds(self, times: Times) -> Seconds:
        """Steps times images times seconds, of each phase."""

        def taken(*, with_grad: bool) -> float:
            return sum(phase.steps * phase.images for phase in self.phases if phase.with_grad == with_grad)

        encoded = sum(phase.runs * phase.images for phase in self.phases)
        encoded /= self.trainer.batches.images_per_prompt
        return Seconds(
            plain=self.accumulation * taken(with_grad=False) * times.calls_a_step * times.plain,
            with_grad=self.accumulation * taken(with_grad=True) * times.calls_a_step * times.with_grad,
            decoding_and_rewards=self.accumulation * self.images * times.decoding_and_rewards,
            encoding=self.accumulation * encoded * times.encoding,
        )

    def images_at_once(self) -> int:
        """No more is alive than one step of a whole pass."""
        return self.trainer.batch_size * self.accumulation


class PolicyGradientWork(WorkByScores):
    """Of `ddpo` and `grpo`: every trained step of every minibatch is taken again, with gradient."""

    def __init__(self, trainer: Trainer, learner: PolicyGradient) -> None:
        settings, sampler = learner.settings, trainer.sampler
        self.parts, self.learner = settings.minibatches, PolicyGradient(settings, ByPrompt(history=2, least=2))
        trained = len(sampler.noisy_steps) if settings.steps is None else settings.steps
        images = trainer.batch_size * trainer.batches.images_per_prompt / self.parts
        again = Phase(
            settings.inner_epochs * self.parts * trained, images, settings.inner_epochs * self.parts * trained
        )
        phases = [Phase(self.parts * sampler.steps, images, self.parts), Phase(again.steps, images, again.runs, True)]
        super().__init__(trainer, [*phases, again] if sampler.base_model is not None else phases)

    def activations(self, batch: int) -> int:
        """One recorded step of a part, beside the runs of all parts of all passes, linear in the batch."""
        rollouts = extended(lambda images: self.probe.kept_by_runs(images, self.parts), batch, self.parts)
        update = extended(lambda images: self.probe.peak_of(self.learner, images), batch, self.parts)
        return round(update + (self.accumulation - 1) * rollouts)


class ImportanceWork(WorkByScores):
    """Of `importance`, once as many samples are remembered as it takes from its buffer.

    The denoiser runs once more for samples of a number that is new, to see what it returns.
    """

    def __init__(self, trainer: Trainer, learner: WeightedRegression) -> None:
        settings, sampler = learner.settings, trainer.sampler
        images = trainer.batch_size * trainer.batches.images_per_prompt
        rate = 1.0 if settings.weighting == "softmax" else settings.acceptance_rate or ACCEPTED
        counted = max(1.0, rate * (images + min(settings.buffer, images)))
        chunks = math.ceil(counted / images)
        self.share = counted / chunks / images  # of a pass, in one recorded call
        self.learner: Learner = WeightedRegression(SimpleNamespace(**{**vars(settings), **ALL}))
        fits = settings.fits * settings.levels * chunks
        phases = [
            Phase(sampler.steps, images, 1),
            Phase(1, counted / chunks, chunks),
            Phase(fits, counted / chunks, fits, with_grad=True),
        ]
        if settings.path_weights:
            phases.append(Phase(len(sampler.noisy_steps), images, 1))
        if sampler.base_model is not None:
            phases.append(Phase(fits, counted / chunks, fits))
        super().__init__(trainer, phases)

    def activations(self, batch: int) -> int:
        """The larger of a run that is scored, and a recorded step of the samples that count; linear in the batch."""
        drawn = extended(self.probe.peak_of_scores, batch, 1)
        fitted = extended(lambda images: self.probe.peak_of(self.learner, images), max(1.0, self.share * batch), 1)
        return round(max(drawn, fitted))


ALL = {"acceptance_rate": 1.0, "weighting": "rejection", "buffer": 0}  # what is fitted is then what was drawn


def extended(measured: Callable[[int], int], images: float, smallest: int) -> float:
    """A number of bytes on the straight line through those of the smallest batch and of twice as many images."""
    small = measured(smallest)
    return small + (images / smallest - 1) * (measured(2 * smallest) - small) if images > smallest else small
