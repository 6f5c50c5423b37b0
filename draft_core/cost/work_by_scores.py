"""Forecast of the methods that need no gradient of a reward: samples without gradient, then single steps with it.

Come here for what `ddpo`, `grpo`, `importance` and `dpo` cost. Their steps are taken by replays of the pipeline's call,
which encode no prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import torch

from draft_core.cost.probe import Probe, Times, seconds_of
from draft_core.cost.work import Calls, Seconds
from draft_core.learners.advantages import ByPrompt
from draft_core.learners.learner import Batch, Learner
from draft_core.learners.policy_gradient import PolicyGradient
from draft_core.learners.preference import PreferenceLearner
from draft_core.learners.weighted_regression import ACCEPTED, WeightedRegression
from draft_core.setting import RECOMPUTING
from draft_core.training.trainer import Trainer


@dataclass(frozen=True)
class Phase:
    """Steps of one kind in a pass.

    Arguments:
        steps: sampler steps for which the denoiser is asked, on average.
        images: in each of them.
        encodings: how often the prompts of these images are encoded for them.
        with_grad: whether they are recorded.
        once: whether they are taken in one pass of an update, and not in each.
    """

    steps: float
    images: float
    encodings: int = 0
    with_grad: bool = False
    once: bool = False


class WorkByScores:
    """What an update asks that is made of such phases.

    Arguments:
        phases: of one pass.
        drawn: images of one pass that are decoded and scored; those of a batch if left out.
        read: images of one pass that are encoded.

    Attributes:
        may_be_halved: false where the images of a pass are compared with each other.
    """

    may_be_halved = False

    def __init__(self, trainer: Trainer, phases: list[Phase], *, drawn: int | None = None, read: int = 0) -> None:
        self.trainer = trainer
        self.phases = phases
        self.probe = Probe(trainer)
        self.accumulation = trainer.batches.accumulation
        self.drawn = trainer.batch_size * trainer.batches.images_per_prompt if drawn is None else drawn
        self.read = read

    def times(self) -> Times:
        """Of one image that is drawn and scored without gradient, and of one recorded denoiser call."""
        self.probe.timed_scores()  # the first one sets up caches
        return self.probe.timed_scores()

    def calls(self, calls_a_step: float) -> Calls:
        """Exact where each step calls the denoiser equally often, and as many samples are accepted as expected."""

        def counted(*, with_grad: bool) -> int:
            phases = [phase for phase in self.phases if phase.with_grad == with_grad]
            return sum(self._passes(phase) * round(calls_a_step * phase.steps) for phase in phases)

        recorded, images = counted(with_grad=True), self.accumulation * self.drawn
        return Calls(
            plain=counted(with_grad=False),
            with_grad=recorded,
            recomputed=recorded if self.trainer.sampler.gradient_checkpointing in RECOMPUTING else 0,
            decoded=images,
            scored=images,
            encoded=self.accumulation * self.read,
        )

    def seconds(self, times: Times) -> Seconds:
        """Steps times images times seconds, of each phase."""

        def taken(*, with_grad: bool) -> float:
            phases = [phase for phase in self.phases if phase.with_grad == with_grad]
            return times.calls_a_step * sum(self._passes(phase) * phase.steps * phase.images for phase in phases)

        encoded = sum(self._passes(phase) * phase.encodings * phase.images for phase in self.phases)
        return Seconds(
            plain=taken(with_grad=False) * times.plain,
            with_grad=taken(with_grad=True) * times.with_grad,
            decoding_and_rewards=self.accumulation * self.drawn * times.decoding_and_rewards,
            encoding=encoded / self.trainer.batches.images_per_prompt * times.encoding,
            image_encoding=self.accumulation * self.read * times.image_encoding,
        )

    def _passes(self, phase: Phase) -> int:
        return 1 if phase.once else self.accumulation

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
        again = Phase(settings.inner_epochs * self.parts * trained, images)
        phases = [Phase(self.parts * sampler.steps, images, self.parts), replace(again, with_grad=True)]
        super().__init__(trainer, [*phases, again] if sampler.base_model is not None else phases)

    def activations(self, batch: int) -> int:
        """One recorded step of a part, beside the runs of all parts of all passes, linear in the batch."""
        rollouts = extended(lambda images: self.probe.kept_by_runs(images, self.parts), batch, self.parts)
        update = extended(lambda images: self.probe.peak_of(self.learner, self.probe.batch(images)), batch, self.parts)
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
            Phase(1, counted / chunks, once=True),
            Phase(fits, counted / chunks, chunks, with_grad=True),
        ]
        if settings.path_weights:
            phases.append(Phase(len(sampler.noisy_steps), images))
        if sampler.base_model is not None:
            phases.append(Phase(fits, counted / chunks))
        super().__init__(trainer, phases)

    def activations(self, batch: int) -> int:
        """The larger of a run that is scored, and a recorded step of the samples that count; linear in the batch."""
        drawn = extended(self.probe.peak_of_scores, batch, 1)
        fitted = extended(
            lambda images: self.probe.peak_of(self.learner, self.probe.batch(images)), max(1.0, self.share * batch), 1
        )
        return round(max(drawn, fitted))


class PreferenceWork(WorkByScores):
    """Of `dpo`, as the first update: pairs of a file are encoded, own samples are drawn, scored and ranked.

    The denoiser runs once more for pairs of a number that is new, to see what it returns.
    """

    def __init__(self, trainer: Trainer, learner: PreferenceLearner) -> None:
        settings, sampler = learner.settings, trainer.sampler
        passes = list(trainer.batches.draw(0))
        self.first = passes[0]
        self.of_file = self.may_be_halved = settings.pairs is not None
        pairs = [trainer.batch_size if self.of_file else _pairs_of(batch.prompts) for batch in passes]
        self.most, self.levels = max(pairs), settings.levels
        self.learner = PreferenceLearner(settings)
        self.learner.encoder = learner.encoder
        compared = Phase(settings.fits * settings.levels, 2 * sum(pairs) / len(pairs))
        phases = [Phase(1, 2 * number, once=True) for number in set(pairs)]
        phases += [replace(compared, encodings=1, with_grad=True), compared]
        if self.of_file:
            super().__init__(trainer, phases, drawn=0, read=2 * trainer.batch_size)
        else:
            super().__init__(trainer, [Phase(sampler.steps, trainer.batch_size, 1), *phases])

    def times(self) -> Times:
        """The same, and of one image of a file that is encoded."""
        times = super().times()
        self.learner.check(self.trainer.sampler)
        if self.learner.encoder is None:
            return times
        image = torch.zeros(1, 3, *self.learner.encoder.size)
        return replace(times, image_encoding=seconds_of(partial(self.learner.encoder, image), self.trainer.device))

    def activations(self, batch: int) -> int:
        """The larger of a run that is scored, and all levels of a recorded call on the pairs; linear in the batch."""
        self.learner.check(self.trainer.sampler)
        if self.of_file:
            return round(extended(lambda pairs: self.probe.peak_of(self.learner, self._some(pairs)), batch, 1))
        drawn = extended(lambda images: self.probe.peak_of_scores(images, keep_trajectory=False), batch, 1)
        fitted = extended(lambda pairs: self.probe.peak_of(self.learner, self.probe.batch(2 * pairs, 2)), self.most, 1)
        return round(max(drawn, fitted))

    def images_at_once(self) -> int:
        """All levels of a pair are alive together."""
        return max(self.trainer.batch_size, 2 * self.most * self.levels)

    def _some(self, pairs: int) -> Batch:
        """The first pairs of the first update."""
        columns = {name: column[:pairs] for name, column in self.first.columns.items()}
        prompts, generators = self.first.prompts[:pairs], self.first.generators[:pairs]
        return replace(self.first, prompts=prompts, generators=generators, columns=columns)


ALL = {"acceptance_rate": 1.0, "weighting": "rejection", "buffer": 0}  # what is fitted is then what was drawn


def _pairs_of(prompts: Sequence[str]) -> int:
    """How many prompts have several images; one that counts for nothing stands in where none has."""
    return max(1, sum(copies > 1 for copies in Counter(prompts).values()))


def extended(measured: Callable[[int], int], images: float, smallest: int) -> float:
    """A number of bytes on the straight line through those of the smallest batch and of twice as many images."""
    small = measured(smallest)
    return small + (images / smallest - 1) * (measured(2 * smallest) - small) if images > smallest else small
