"""The training loop: batches to losses to optimiser steps, and a generator of reports around them.

Come here for what every method shares; what a method computes is in its learner.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from draft_core.adapters.adapter import Adapter
from draft_core.adapters.lora_adapter import Lora
from draft_core.errors import CheckpointError, DraftError, RewardError, list_of_prompts, with_type
from draft_core.evaluation.evaluate import Evaluation, evaluate
from draft_core.learners.direct import DirectLearner
from draft_core.learners.learner import ADAPTER, Learner, Loss
from draft_core.rewards.objective import Objective, Rewards, as_objective
from draft_core.sampling.pipelines import networks
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import images_per_prompt
from draft_core.training.batches import Batches
from draft_core.training.checkpoints import Checkpoint, keys_as_rows, require_same, rows_as_keys
from draft_core.training.distributed import Processes
from draft_core.training.learner_contract import (
    checked,
    in_one_sentence,
    losses_of,
    modules_of,
    name_of,
    regularizers_of,
    remembered,
    require_fit,
    require_videos,
    snapshot,
)
from draft_core.training.optimization import TrainedPart, kept_from_others, learning_rate
from draft_core.training.precision import autocast, needs_loss_scale
from draft_core.training.scoring import Scoring, check_images, norms_and_cosines, reward_gradients
from draft_core.training.settings import RegularizerSettings, TrainSettings
from draft_core.training.sharding import check_recomputed, shard_denoisers
from draft_core.training.step_report import StepReport, Tally

NO_REGULARIZERS = RegularizerSettings()
END: Any = object()  # after the last loss
NO_COLUMNS: Mapping[str, Sequence[str]] = {}


class Trainer:
    """A learner's losses, backpropagated into an adapter of the sampler's pipeline.

    Iterate it for the reports: `for report in trainer: ...`; logging is the caller's.

    Arguments:
        sampler: its pipeline carries the adapter already.
        objective: what images are scored by: an `Objective`, or a reward or function, or several by name.
        learner: the method at work; None takes DRaFT-LV with two copies.
        prompts: training prompts, one at least, taken in an order shuffled anew each time all have been used.
        settings: of the optimisation; None takes `TrainSettings()`.
        regularizers: what holds the tuned model near the base model; `kl` needs a sampler with a base model, or gives
            it one where it has an anchor.
        adapter: what is trained, attached; None takes the LoRA of the sampler's pipeline (`lora.add_lora`).
        device: "cpu", "cuda" or "mps"; None takes accelerate's choice.
        columns: what the prompt list says beside each prompt, name -> as many values as there are prompts.
        gate: the metrics of `regularizers.kl_gate`; needed where that names any.

    Attributes:
        done: updates made so far.
        device: where it computes.
        scoring: the rewards, and what each is divided by.
        skipped: optimiser steps left out so far because a number was not finite; those that a smaller loss scale
            mends are not counted.
        parts: "adapter" and the names of the learner's modules -> what is trained, with its optimiser.

    Under several processes (`draft train --processes 2`, `accelerate launch`) each draws its own part of the batch, and
    gradients are averaged: two processes with a batch of B are one with 2 B.

    Raises:
        DraftError: if learner, settings and sampler do not fit one another.
    """

    def __init__(
        self,
        sampler: DifferentiableSampler,
        objective: Rewards,
        learner: Learner | None = None,
        prompts: Sequence[str] = (),
        settings: TrainSettings | None = None,
        *,
        regularizers: RegularizerSettings = NO_REGULARIZERS,
        adapter: Adapter | None = None,
        device: str | None = None,
        columns: Mapping[str, Sequence[str]] = NO_COLUMNS,
        gate: Objective | None = None,
    ) -> None:
        learner = DirectLearner() if learner is None else learner
        settings = TrainSettings() if settings is None else settings
        objective, modules = as_objective(objective), modules_of(learner)
        self.processes = Processes(cpu=device == "cpu")
        self.device = self.processes.device
        prompts = list_of_prompts(prompts, where="Trainer")
        copies = images_per_prompt(sampler.call_kwargs)
        require_fit(sampler, learner, settings, regularizers, gate)
        check_images(settings, copies, self.processes.world_size, objective.quantiles, ranked=gate is not None)
        objective.group_size = settings.images_per_prompt * copies
        # Not accelerate's own backward pass and optimiser: the shell's variables would change what they compute.
        self.autocast = partial(autocast, self.device, settings.mixed_precision)
        self.autocast()  # refuses what the device cannot do
        self.sampler = sampler
        gate = None if gate is None else gate.to(self.device)
        self.scoring = Scoring(objective.to(self.device), settings.normalize, self.processes, gate)
        self.learner = learner
        self.settings = settings
        self.adapter: Adapter = Lora(sampler.pipe) if adapter is None else adapter
        self.steps, self.batch_size = settings.steps, settings.batch_size
        self.parameters = self.adapter.parameters()
        if settings.sharding != "none":
            check_recomputed(sampler.gradient_checkpointing)
            of_machine = self.processes.of_machine() if settings.sharding == "hybrid" else None
            shard_denoisers(sampler.pipe, self.device, self.processes.world_size, of_machine=of_machine)
        sampler.pipe.to(self.device)
        if sampler.decoder is not None:
            sampler.decoder.vae.to(self.device)
        require_videos(sampler, objective, settings)
        trained = {
            ADAPTER: self.parameters,
            **{name: module.to(self.device).parameters() for name, module in modules.items()},
        }
        self.processes.begin_equal(self.parameters, modules.values())
        self.regularizers = regularizers_of(regularizers, self.adapter, sampler)
        in_float16 = needs_loss_scale(settings.mixed_precision, [*networks(sampler.pipe).values(), objective])
        self.parts = {
            name: TrainedPart(parameters, settings, self.processes, in_float16=in_float16)
            for name, parameters in trained.items()
        }
        self.optimizer = self.parts[ADAPTER].optimizer
        self.batches = Batches(
            prompts=prompts,
            seed=settings.seed,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation_steps,
            images_per_prompt=copies,
            ranks=self.processes,
            columns=columns,
            repeats=settings.images_per_prompt,
        )
        self.skipped, self.done = 0, 0

    @property
    def objective(self) -> Objective:
        """The rewards, weighted and capped."""
        return self.scoring.objective

    def __iter__(self) -> Iterator[StepReport]:
        """One report an update, until all `steps` are done; goes on where a loaded checkpoint stopped."""
        while self.done < self.steps:
            yield self.train_step()

    @torch.enable_grad()
    def train_step(self) -> StepReport:
        """One update: every loss of the learner, and the optimiser steps that it asks for, at least one.

        Autograd records it also under `torch.no_grad`, whose state is afterwards what it was.

        Numbers that are not finite skip the optimiser step, and the weights stay. Where gradients pass through
        float16, losses are multiplied by a power of two that an overflow halves (`precision.LossScale`).

        Raises:
            RewardError: if too many steps have been skipped.
            DraftError: if a reward or the learner breaks its contract.
        """
        start, skipped_before = time.perf_counter(), self.skipped
        self.sampler.frames = self.batches.frames(self.settings.frames, self.done)
        rate, tally = learning_rate(self.settings, self.done), Tally()
        for part in self.parts.values():
            part.set_learning_rate(rate)
        score = partial(self.scoring.score, tally)
        with in_one_sentence(self.learner, "losses()"):
            streams = [
                losses_of(self.learner, self.learner.losses(batch, self.sampler, score))
                for batch in self.batches.draw(self.done)
            ]
        while self._train_round(streams, tally):
            pass
        for name in [name for name, part in self.parts.items() if part.pending]:
            self._optimize(name, tally)
        self.done += 1
        if not tally.yielded:
            tally.notes.append("the method yielded no loss, so nothing is learnt")
        if self.skipped > max(skipped_before, self.settings.max_skipped):  # a resumed run may allow fewer than it has
            raise RewardError(
                f"{self.skipped} optimiser steps were skipped, the last one because {tally.skipped[-1]}",
                where=f"update {self.done}",
                next="lower train.learning_rate, or look at what it names; the last checkpoint is kept",
            )
        tally.merge(self.processes.gather(tally))
        if self.regularizers.asks_base_model:
            tally.require_divergence()
        self.regularizers.follow()
        seconds = time.perf_counter() - start
        return tally.report(self.done, self.regularizers.weights, learning_rate=rate, seconds=seconds)

    def _train_round(self, streams: Sequence[Iterator[Loss]], tally: Tally) -> bool:
        """Of every batch the losses up to and including a step, then that step; whether there may be more.

        Where one batch has no loss left, the round is thrown away: all batches make equally many steps. What rounds
        before it left for the end of the update stays.
        """
        mark, due = tally.mark(), dict[str, None]()
        gradients = {name: part.gradient() for name, part in self.parts.items()} if len(streams) > 1 else {}
        losses = [self._train_until_step(stream, tally, due) for stream in streams]
        if not all(losses):
            if any(losses):
                tally.back_to(mark)
                for name, gradient in gradients.items():
                    self.parts[name].put_back(gradient)
            return False
        for name in due:
            self._optimize(name, tally)
        return True

    def _train_until_step(self, stream: Iterator[Loss], tally: Tally, due: dict[str, None]) -> int:
        """Backpropagates the losses of one batch up to and including a step, whose part is added to `due`."""
        count = 0
        while True:
            with self.autocast(), in_one_sentence(self.learner, "losses()"):
                loss = next(stream, END)
            if loss is END:
                return count
            loss = checked(self.learner, loss)
            count += 1
            self._accumulate_gradient(loss, tally)
            if loss.step:
                due[loss.of] = None
                return count

    def _accumulate_gradient(self, loss: Loss, tally: Tally) -> None:
        """From one loss to gradient of the part that it trains."""
        if loss.of not in self.parts:
            raise DraftError(f"it trains {loss.of!r}, which is none of {', '.join(self.parts)}", where="loss")
        of_adapter = loss.of == ADAPTER
        penalties = self.regularizers.penalties(loss.divergence) if of_adapter else {}
        numbers = {name: float(value.detach()) for name, value in penalties.items()}
        tally.add_loss(loss, numbers, of_adapter=of_adapter)
        self.parts[loss.of].pending = True
        # The gradient of a number that is not finite would spoil the part's others. With a sharded denoiser the
        # backward pass is work in common, which all do or none.
        is_spoilt = bool(tally.problems_of(loss.of))
        if any(self.processes.gather(is_spoilt)) if self.settings.sharding != "none" else is_spoilt:
            return
        value = self.regularizers.added(loss.value, penalties)
        if not value.requires_grad:
            raise DraftError("it carries no gradient", where=f"loss of {loss.of!r}", next="tell the method's author")
        with kept_from_others(self.parts, loss.of):
            self.parts[loss.of].backward(value * (loss.share / self.batches.accumulation))

    def _optimize(self, name: str, tally: Tally) -> None:
        outcome = self.parts[name].step(tally.problems_of(name))
        tally.close_step(outcome.problems, outcome.grad_norm, of=name)
        self.skipped += outcome.is_fault

    @torch.enable_grad()
    def reward_gradients(self) -> tuple[dict[str, float], dict[str, float]]:
        """Each reward's own gradient in the adapter on the batch of the coming update: norms, and cosines of pairs.

        Weighted like in the sum; it takes a rollout and a backward pass for each reward, and changes nothing. Both are
        empty where the method does not backpropagate through the rewards; a cosine with a gradient of zero is NaN.
        """
        if not self.learner.needs_gradient:
            return {}, {}
        factor = self.parts[ADAPTER].loss_scale.value
        self.sampler.frames = self.batches.frames(self.settings.frames, self.done)
        with self.autocast(), in_one_sentence(self.learner, "losses()"):
            flat = reward_gradients(
                self.scoring, self.learner, self.sampler, self.batches, self.done, self.parameters, factor
            )
        return norms_and_cosines(flat)

    def draw(self, prompts: Sequence[str], *, seed: int = 0, images_per_prompt: int = 1) -> Evaluation:
        """Images of the model as it is now, and their scores; it builds no graph and changes nothing.

        Arguments:
            prompts: P, at least one.
            seed: of the first image of each prompt; the next ones count on from it.
            images_per_prompt: S; there are P S images, those of a prompt side by side.

        Raises:
            DraftError: as `draft_core.evaluate`.
        """
        seeds, size = range(seed, seed + images_per_prompt), self.batch_size
        return evaluate(self.sampler, self.objective, prompts, seeds, batch_size=size, autocast=self.autocast)

    # Checkpoints

    def state(self) -> Checkpoint:
        """Everything that `restore` needs to go on exactly from here; later updates do not change it.

        Raises:
            DraftError: if the learner's `state_dict()` raises, or is no mapping.
        """
        return Checkpoint(
            adapter=self.adapter.state_dict(),
            optimizers={name: snapshot(part.optimizer.state_dict()) for name, part in self.parts.items()},
            learner={
                "state": rows_as_keys(remembered(self.learner)),
                "modules": {name: snapshot(module.state_dict()) for name, module in self.learner.modules().items()},
                **self.regularizers.state(),
            },
            state={
                "update": self.done,
                "seed": self.settings.seed,
                "method": name_of(self.learner),
                "skipped": self.skipped,
                "scale": self.scoring.state(),
                "loss_scale": {name: part.loss_scale.state() for name, part in self.parts.items()},
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a `state()`.

        Arguments:
            checkpoint: as `state()` gave it, or as it is read from a file.

        Raises:
            CheckpointError: if it belongs to a run with another seed, adapter or method.
        """
        state = checkpoint.state
        require_same(state, seed=self.settings.seed, method=name_of(self.learner))
        try:
            self.adapter.load_state_dict(checkpoint.adapter)
            self.regularizers.restore(checkpoint.learner)
            for name, part in self.parts.items():
                part.load_optimizer(snapshot(checkpoint.optimizers[name]))
                part.loss_scale.restore(state["loss_scale"][name])
            for name, module in self.learner.modules().items():
                module.load_state_dict(checkpoint.learner["modules"][name])
            state_of_learner = keys_as_rows(checkpoint.learner["state"], self.batches.prompts)
            self.learner.load_state_dict(snapshot(state_of_learner))
            scale, skipped, done = state["scale"], int(state["skipped"]), int(state["update"])
        except (DraftError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch's, or the learner's own
            raise CheckpointError(f"it does not fit ({with_type(error)})", next="start anew: --overwrite") from error
        self.scoring.restore(scale)
        self.skipped, self.done = skipped, done
