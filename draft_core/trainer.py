"""The trainer: one update read as data flowing, and a generator of reports around it.

Everything random in update u is drawn from the seed and u alone, so a resumed run draws what an
uninterrupted one would. Tensors wing. May import: errors, lora, objective, plan, protocols, sampler.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from draft_core.errors import CheckpointError, DraftError, RewardError
from draft_core.lora import lora_state, set_lora_state, squared_norm, trainable
from draft_core.objective import Objective, Scores
from draft_core.plan import StepPlan
from draft_core.protocols import Estimator, Rollout
from draft_core.sampler import DifferentiableSampler


@dataclass(frozen=True)
class StepReport:
    """What one update did.

    Arguments:
        update: how many updates have been made, this one included.
        loss: minus the mean total score, plus the weighted penalties.
        reward: mean weighted total score over the update's images, caps applied; higher is better.
        scores: reward name -> mean score before its weight.
        grad_norm: L2 norm of the LoRA gradient before clipping, mean over the optimiser steps.
        learning_rate: the rate this update was made with.
        seconds: wall time of the update.
        penalties: regulariser -> its value before its weight, mean over passes.
        optimizer_steps: how many optimiser steps the update took; more than one only with prefix reuse.
    """

    update: int
    loss: float
    reward: float
    scores: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float
    penalties: Mapping[str, float] = field(default_factory=dict)
    optimizer_steps: int = 1


@dataclass
class _Gathered:
    """What the passes of one update scored, with how many images each: what its report is made of."""

    totals: list[float] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    penalties: list[Mapping[str, float]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def mean(self, each: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Mean over images, name by name."""
        total = sum(self.counts)
        return {
            name: sum(count * one[name] for count, one in zip(self.counts, each, strict=True)) / total
            for name in each[0]
        }


class Trainer:
    """Gradient ascent on a reward through the sampler, into the LoRA of the sampler's denoiser.

    Iterate it for the reports: `for report in trainer: ...`; logging is the caller's. The settings and
    their defaults are the fields of `recipe.TrainConfig`: `Trainer(..., **TrainConfig(steps=50).model_dump())`.

    Arguments:
        sampler: its pipeline carries a trainable LoRA (`lora.add_lora`).
        objective: what to maximise.
        estimator: where the gradient flows, asked anew at each update.
        prompts: training prompts, taken in an order shuffled anew each time all have been used.
        device: "cpu", "cuda" or "mps"; None takes accelerate's choice.
        steps: number of updates.
        batch_size: prompts in one pass; one image each.
        gradient_accumulation_steps: passes in one update.
        learning_rate, betas, weight_decay: of AdamW (Loshchilov and Hutter 2019).
        warmup_steps: updates over which the learning rate rises from 0, linearly.
        max_grad_norm: gradients with a larger L2 norm are scaled down to it.
        mixed_precision: "no", "fp16" or "bf16", accelerate's autocast around sampling and scoring.
        seed: of prompts, noise and plans.
        kl: weight of the divergence between tuned and base denoiser along the graded steps; needs a sampler with a
            base model (the KL of two Gaussians of equal variance is their squared distance; DRaFT+, NVIDIA NeMo).
        lora_norm: weight of the squared Frobenius norm of what the LoRA adds to the weights.

    Raises:
        DraftError: under several processes, which are not supported yet.
    """

    def __init__(
        self,
        sampler: DifferentiableSampler,
        objective: Objective,
        estimator: Estimator,
        prompts: Sequence[str],
        *,
        steps: int,
        batch_size: int,
        gradient_accumulation_steps: int,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup_steps: int,
        max_grad_norm: float,
        mixed_precision: str,
        seed: int,
        kl: float = 0.0,
        lora_norm: float = 0.0,
        device: str | None = None,
    ) -> None:
        # Passes are accumulated by hand: accelerate keeps their number in one place for the whole process,
        # where a second trainer would change it for the first.
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
        if self.accelerator.num_processes > 1:
            raise DraftError("several processes are not supported yet", where="trainer", next="start one process")
        if kl and sampler.base_model is None:
            raise DraftError("the sampler knows no base model to stay near to", where="kl", next="give it base_model")
        self.sampler = sampler
        self.objective = objective.to(self.accelerator.device)
        sampler.pipe.to(self.accelerator.device)
        self.estimator = estimator
        self.prompts = list(prompts)
        self.steps = steps
        self.batch_size = batch_size
        self.accumulation = gradient_accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.kl = kl
        self.lora_norm = lora_norm
        self.done = 0  # updates made so far
        self.parameters = list(trainable(sampler.pipe))
        optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps

    def __iter__(self) -> Iterator[StepReport]:
        """One report an update, until all `steps` are done; goes on where a loaded checkpoint stopped."""
        while self.done < self.steps:
            yield self.train_step()

    def train_step(self) -> StepReport:
        """One update of the LoRA: one optimiser step, or with prefix reuse one for each pass of a rollout.

        Raises:
            RewardError: if reward or gradient is not finite; the weights are then as before that optimiser step.
        """
        start = time.perf_counter()
        learning_rate = self._set_learning_rate()
        plan = self.estimator.plan(self.sampler.steps, Random(f"plan {self.seed} {self.done}"))
        batches = [self._passes(micro, plan) for micro in range(self.accumulation)]
        gathered = _Gathered()
        if plan.step_each:
            for same_pass in zip(*batches, strict=False):  # the batch that drifts first ends the rollout for all
                for rollout in same_pass:
                    self._accumulate_gradient(rollout, 1 / self.accumulation, gathered)
                self._optimize(gathered)
        else:
            for batch in batches:
                for rollout in batch:
                    self._accumulate_gradient(rollout, _share(rollout, plan) / self.accumulation, gathered)
            self._optimize(gathered)
        self.done += 1
        scores, penalties = gathered.mean(gathered.scores), gathered.mean(gathered.penalties)
        reward = gathered.mean([{"total": total} for total in gathered.totals])["total"]
        return StepReport(
            update=self.done,
            loss=sum(self._weights()[name] * value for name, value in penalties.items()) - reward,
            reward=reward,
            scores=scores,
            grad_norm=fmean(gathered.grad_norms),
            learning_rate=learning_rate,
            seconds=time.perf_counter() - start,
            penalties=penalties,
            optimizer_steps=len(gathered.grad_norms),
        )

    def _passes(self, micro: int, plan: StepPlan) -> Iterator[_Pass]:
        """The samples of one batch and their re-noisings, one after another, with their scores."""
        prompts, generator = self._draw(micro)
        rollouts = self.sampler.passes(prompts, plan=plan, generator=generator)  # prompts -> images, with gradient
        sample_count = 0
        while True:
            with self.accelerator.autocast():
                rollout = next(rollouts, None)
                if rollout is None:
                    return
                scores = self.objective(rollout.images, rollout.prompts)  # images  -> a score for each, (N,)
            sample_count = sample_count or rollout.sample_count
            yield _Pass(rollout, scores, sample_count)

    def _accumulate_gradient(self, one: _Pass, share: float, gathered: _Gathered) -> None:
        """From the scores of one pass to gradient, its part in the update's loss being `share`."""
        _require_gradient(one.scores.each)
        loss = -one.scores.total.mean()  # higher reward is better
        penalties = self._penalties(one.rollout)
        for name, value in penalties.items():
            loss = loss + self._weights()[name] * value
        self.accelerator.backward(loss * share)  # loss    -> LoRA
        gathered.totals.append(float(one.scores.total.detach().mean()))
        gathered.scores.append({name: float(each.detach().mean()) for name, each in one.scores.each.items()})
        gathered.penalties.append({name: float(value.detach()) for name, value in penalties.items()})
        gathered.counts.append(len(one.rollout.images))

    def _weights(self) -> dict[str, float]:
        return {"kl": self.kl, "lora_norm": self.lora_norm}

    def _penalties(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Regulariser -> its value, of those that have a weight."""
        penalties: dict[str, torch.Tensor] = {}
        if self.kl and rollout.divergence is not None:
            penalties["kl"] = rollout.divergence
        if self.lora_norm:
            penalties["lora_norm"] = squared_norm(self.sampler.pipe)
        return penalties

    def _optimize(self, gathered: _Gathered) -> None:
        """One optimiser step with the gradient gathered so far."""
        grad_norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))
        gathered.grad_norms.append(grad_norm)
        self._check_finite(gathered.mean(gathered.scores), grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _draw(self, micro: int) -> tuple[list[str], torch.Generator]:
        """Prompts and noise source of one batch of the coming update."""
        first = (self.done * self.accumulation + micro) * self.batch_size
        prompts = [self._prompt(index) for index in range(first, first + self.batch_size)]
        noise = Random(f"noise {self.seed} {self.done} {micro}").getrandbits(62)
        # Noise is drawn on the CPU, so that a seed means the same pictures on every device.
        return prompts, torch.Generator("cpu").manual_seed(noise)

    def _prompt(self, index: int) -> str:
        epoch, place = divmod(index, len(self.prompts))
        order = list(range(len(self.prompts)))
        Random(f"prompts {self.seed} {epoch}").shuffle(order)
        return self.prompts[order[place]]

    def _set_learning_rate(self) -> float:
        """Linear warm-up that starts above zero, so that the first update is not empty; then constant."""
        rate = self.learning_rate * min(1.0, (self.done + 1) / (self.warmup_steps + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _check_finite(self, scores: Mapping[str, float], grad_norm: float) -> None:
        bad = [f"reward {name!r}" for name, score in scores.items() if not math.isfinite(score)]
        # With fp16 autocast the gradient scaler skips overflowing updates by itself.
        if not math.isfinite(grad_norm) and self.accelerator.mixed_precision != "fp16":
            bad.append("the gradient")
        if bad:
            self.optimizer.zero_grad()
            raise RewardError(
                f"{' and '.join(bad)} became non-finite",
                where=f"update {self.done + 1}",
                next="lower train.learning_rate, or look at the reward; the last checkpoint is kept",
            )

    # Checkpoints: adapter.safetensors, optimizer.pt (tensors and numbers only), state.json

    def save_checkpoint(self, folder: Path) -> Path:
        """Writes `folder` with everything that `load_checkpoint` needs, aside first and then renamed; returns it."""
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(lora_state(self.sampler.pipe), aside / "adapter.safetensors")
        torch.save(self.optimizer.state_dict(), aside / "optimizer.pt")
        (aside / "state.json").write_text(json.dumps({"update": self.done, "seed": self.seed}))
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        return folder

    def load_checkpoint(self, folder: Path) -> None:
        """Continues from a folder that `save_checkpoint` wrote.

        Raises:
            CheckpointError: if it is missing, torn, or belongs to a run with another seed or LoRA.
        """
        try:
            state = json.loads((folder / "state.json").read_text())
            adapter = load_file(folder / "adapter.safetensors")
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, SafetensorError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"cannot be read ({error})", where=str(folder), next="resume from an earlier checkpoint"
            ) from error
        if state["seed"] != self.seed:
            raise CheckpointError(
                f"it was made with seed {state['seed']}, this run has seed {self.seed}",
                where=str(folder),
                next="resume with the recipe that the run was started with",
            )
        set_lora_state(self.sampler.pipe, adapter)
        self.optimizer.load_state_dict(optimizer)
        self.done = state["update"]


@dataclass(frozen=True)
class _Pass:
    """One pass of a rollout, scored, and how many samples the rollout began with."""

    rollout: Rollout
    scores: Scores
    sample_count: int


def _share(one: _Pass, plan: StepPlan) -> float:
    """What part of all images of a rollout this pass holds."""
    return len(one.rollout.images) / (one.sample_count * (1 + plan.resamples))


def _require_gradient(each: Mapping[str, torch.Tensor]) -> None:
    for name, scores in each.items():
        if not scores.requires_grad:
            raise RewardError(
                "its scores carry no gradient, so nothing would be trained",
                where=f"reward {name!r}",
                next=f"run `draft rewards check {name.split('#')[0]}` and tell its author",
            )
