"""Forecast of regression on detached targets: samples without gradient, a target, and single calls with gradient."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from draft_core.cost.probe import Times
from draft_core.cost.work import Calls
from draft_core.cost.work_by_scores import Phase, WorkByScores, extended
from draft_core.learners.targets import TargetLearner
from draft_core.training.trainer import Trainer


class TargetWork(WorkByScores):
    """Of `target`, on average: every update has its part of the samples that are drawn for several.

    The denoiser runs once more for samples of a number that is new, to see what it returns.
    """

    may_be_halved = True

    def __init__(self, trainer: Trainer, learner: TargetLearner) -> None:
        sampler, settings = trainer.sampler, learner.settings
        images = trainer.batch_size * trainer.batches.images_per_prompt
        self.refresh = settings.refresh
        phases = [
            Phase((settings.prefix_steps or sampler.steps) / self.refresh, images, 1),
            Phase(1, images, once=True),
            Phase(1, images),  # for the target
            Phase(settings.fits, images, 1, with_grad=True),
        ]
        if sampler.base_model is not None:
            phases.append(Phase(settings.fits, images))
        super().__init__(trainer, phases)
        self.learner = TargetLearner(SimpleNamespace(**{**vars(settings), "prefix_steps": None}))

    def times(self) -> Times:
        """Of an update of one image, backward passes included."""
        self.probe.update(1, 1)  # the first one sets up caches
        return self.probe.timed_update()

    def calls(self, calls_a_step: float) -> Calls:
        """Exact where samples are drawn for every update, which decodes them too."""
        calls = super().calls(calls_a_step)
        return replace(calls, decoded=calls.decoded + round(calls.decoded / self.refresh))

    def activations(self, batch: int) -> int:
        """Of what an update of the method itself allocates; linear in the batch."""
        of_learner = extended(lambda images: self.probe.peak_of(self.learner, self.probe.batch(images)), batch, 1)
        return round(max(of_learner, extended(self._decoded, batch, 1)))

    def _decoded(self, images: int) -> int:
        return self.probe.peak_of_scores(images, keep_trajectory=False)
