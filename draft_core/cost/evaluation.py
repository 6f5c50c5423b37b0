"""What the evaluations of a run will cost: as many images as the recipe says, drawn as it says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from draft_core.cost.probe import Probe, uncompiled
from draft_core.evaluation.evaluate import as_evaluated
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.rewards.objective import Objective
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.trainer import Trainer


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of one evaluation, and how many a run makes.

    Arguments:
        images: of one evaluation.
        calls: of the denoiser, for one image.
        seconds: of one evaluation.
        evaluations: of a run that makes all its updates, the base model's among them.
    """

    images: int
    calls: int
    seconds: float
    evaluations: int


@uncompiled
def evaluation_cost(
    trainer: Trainer, sampler: DifferentiableSampler, rewards: Objective, settings: EvaluationSettings, *, prompts: int
) -> EvaluationCost:
    """What the evaluations of `trainer` will cost, by one image on this machine: an upper estimate on a GPU.

    Arguments:
        sampler: of the trainer's pipeline, with the steps and the guidance of the evaluations.
        rewards: the trained ones and those that only measure.
        prompts: that are evaluated.
    """
    probe, single = Probe(trainer), as_evaluated(sampler)
    probe.timed_image(single, rewards)  # the first one sets up caches
    calls, seconds = probe.timed_image(single, rewards)
    images = prompts * settings.images_per_prompt
    return EvaluationCost(images, calls, images * seconds, 1 + math.ceil(trainer.steps / settings.every))
