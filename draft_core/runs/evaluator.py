"""The held-out evaluations of a run: the same prompts and seeds each time, compared with the base model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from draft_core.evaluation.collapse import EvalRecord, eval_record
from draft_core.evaluation.evaluate import Evaluation, NotFiniteError, evaluate
from draft_core.reporting.image_grid import watchable
from draft_core.reporting.run_record import EVALUATIONS, append_row, load_images, save_images, save_videos, scale_name
from draft_core.rewards.objective import Objective
from draft_core.runs.folder import RunFolder
from draft_core.runs.progress import Progress, image_stage
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.trainer import Trainer

SCALED_PROMPTS = 4  # are drawn at each scale, from the first seed


@dataclass
class Evaluator:
    """Draws and scores held-out images with the trainer's pipeline, and writes them into the run's folder.

    Every process calls its methods in the same order.

    Arguments:
        sampler: of the trainer's pipeline, with the steps and the guidance of the evaluations.
        rewards: the trained ones and those that only measure.
        prompts: held out, P.
        seeds: S for each prompt.
        base_images: (P S, 3, H, W) of the base model, in the 8-bit levels of their files; read when they are needed.
    """

    trainer: Trainer
    sampler: DifferentiableSampler
    folder: RunFolder
    rewards: Objective
    prompts: Sequence[str]
    seeds: Sequence[int]
    progress: Progress
    base_images: torch.Tensor | None = None

    def evaluate_base(self) -> EvalRecord:
        """The base model's record, which is that of update 0."""
        with self.trainer.adapter.base_model():
            seen = self._draw("before", self.rewards, self.prompts, self.seeds)
        return self.folder.write(lambda: self._write(0, seen, {}, {}))

    def evaluate(self, stage: str = "") -> EvalRecord:
        """The record of the tuned model as it is now; several rewards have their gradients compared.

        Arguments:
            stage: what the progress display calls it; "evaluate UPDATE" if left out.
        """
        update = self.trainer.done
        try:
            seen = self._draw(stage or f"evaluate {update}", self.rewards, self.prompts, self.seeds)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"{error.what} after update {update}; those of the base model were",
                where=error.where,
                next="lower train.learning_rate and start anew with --overwrite; the last checkpoint is kept till then",
            ) from error
        several = len(self.trainer.objective.weights) > 1
        norms, cosines = self.trainer.reward_gradients() if update and several else ({}, {})
        return self.folder.write(lambda: self._write(update, seen, norms, cosines))

    def draw_scales(self, scales: Sequence[float]) -> None:
        """Writes a few images at each scale of what was trained."""
        for scale in scales:
            with self.trainer.adapter.scaled(scale):
                drawn = self._draw(f"scale {scale:g}", Objective({}), self.prompts[:SCALED_PROMPTS], self.seeds[:1])
            self.folder.save_images(scale_name(scale), drawn.images)

    def _draw(self, stage: str, rewards: Objective, prompts: Sequence[str], seeds: Sequence[int]) -> Evaluation:
        processes = self.trainer.processes
        return evaluate(
            self.sampler,
            rewards,
            prompts,
            seeds,
            batch_size=self.trainer.settings.batch_size,
            autocast=self.trainer.autocast,
            progress=image_stage(stage, self.progress),
            share=(processes.rank, processes.world_size),
            gather=processes.gather,
            watch=watchable,
        )

    def _write(self, update: int, seen: Evaluation, norms: dict[str, float], cosines: dict[str, float]) -> EvalRecord:
        """Images and videos first, then the line that names them; for the main process."""
        save_images(self.folder.path, update, seen.images)
        if seen.watched is not None:
            save_videos(self.folder.path, update, seen.watched)
        if self.base_images is None:  # from the files, also in an uninterrupted run: both compare with the same levels
            self.base_images = load_images(self.folder.path, 0, len(seen.images))
        base = replace(seen, images=self.base_images)
        divisors = self.trainer.scoring.divisors if update else {}
        record = eval_record(seen, base, update, gradients=norms, cosines=cosines, divisors=divisors)
        append_row(self.folder.path / EVALUATIONS, record)
        return record
