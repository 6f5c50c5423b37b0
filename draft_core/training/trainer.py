"""The trainer: one update read as data flowing, and a generator of reports around it.

Everything random in update u is drawn from the seed and u alone, so a resumed run draws what an
uninterrupted one would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator

from draft_core.adapters.lora import lora_state, set_lora_state, squared_norm, trainable
from draft_core.errors import CheckpointError, DraftError, RewardError
from draft_core.plan import Method, Renoising, StepPlan
from draft_core.rewards.normalization import RunningScale
from draft_core.rewards.objective import Objective, Scores
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from draft_core.training.distributed import Processes
from draft_core.training.sharding import shard_denoisers
from draft_core.training.step_report import StepReport


class Trainer:
    """Gradient ascent on a reward through the sampler, into the LoRA of the sampler's denoiser.

    Iterate it for the reports: `for report in trainer: ...`; logging is the caller's. The settings and
    their defaults are the fields of `recipe.TrainConfig`: `Trainer(..., **TrainConfig(steps=50).model_dump())`.

    Arguments:
        sampler: its pipeline carries a trainable LoRA (`lora.add_lora`).
        objective: what to maximise.
        method: where the gradient flows, asked anew at each update.
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
        kl: weight of the divergence between tuned and base denoiser along the grad steps; needs a sampler with a
            base model (the KL of two Gaussians of equal variance is their squared distance; DRaFT+, NVIDIA NeMo).
        lora_norm: weight of the squared Frobenius norm of what the LoRA adds to the weights.
        normalize: "none", "scale" or "gradient": what each reward is divided by before its weight, `RunningScale`.
        max_skipped: so many optimiser steps may be skipped for numbers that are not finite; one more ends the run.
        sharding: "none", or "full" to spread the frozen denoiser over the processes, `sharding.shard_denoisers`.

    Under several processes (`draft train --processes 2`, `accelerate launch`) each draws its own part of the batch, and
    gradients are averaged: two processes with a batch of B are one with 2 B.
    """

    def __init__(
        self,
        sampler: DifferentiableSampler,
        objective: Objective,
        method: Method,
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
        normalize: str = "none",
        max_skipped: int = 10,
        sharding: str = "none",
        device: str | None = None,
    ) -> None:
        # Passes are accumulated by hand: accelerate keeps their number in one place for the whole process,
        # where a second trainer would change it for the first.
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
        if kl and sampler.base_model is None:
            raise DraftError("the sampler knows no base model to stay near to", where="kl", next="give it base_model")
        self.processes = Processes(cpu=device == "cpu")
        self.sampler = sampler
        self.objective = objective.to(self.accelerator.device)
        self.parameters = list(trainable(sampler.pipe))
        self.sharded = sharding == "full"
        if self.sharded:
            shard_denoisers(sampler.pipe, self.accelerator.device, self.processes.count)
        sampler.pipe.to(self.accelerator.device)
        self.method = method
        self.prompts = list(prompts)
        self.steps = steps
        self.batch_size = batch_size
        self.accumulation = gradient_accumulation_steps
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.kl = kl
        self.lora_norm = lora_norm
        self.scale = None if normalize == "none" else RunningScale(normalize)
        self.max_skipped = max_skipped
        self.skipped = 0  # optimiser steps so far
        self.done = 0  # updates made so far
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

        Numbers that are not finite skip the optimiser step, and the weights stay.

        Raises:
            RewardError: if a reward carries no gradient, or too many steps have been skipped.
        """
        start = time.perf_counter()
        tally = _Tally(learning_rate=self._set_learning_rate())
        plan = self.method.plan(self.sampler.steps, Random(f"plan {self.seed} {self.done}"))
        renoising = self.method.renoising()
        batches = [self._passes(micro, plan, renoising) for micro in range(self.accumulation)]
        if renoising.step_each:
            for same_pass in zip(*batches, strict=False):  # the batch that drifts first ends the rollout for all
                for one in same_pass:
                    self._accumulate_gradient(one, 1 / self.accumulation, tally)
                self._optimize(tally)
        else:
            images = self.batch_size * self.images_per_prompt * (renoising.copies + (plan.prefix is None))
            for batch in batches:
                for one in batch:
                    share = len(one.rollout.images) / images
                    self._accumulate_gradient(one, share / self.accumulation, tally)
            self._optimize(tally)
        self.done += 1
        if self.skipped > self.max_skipped:
            raise RewardError(
                f"{self.skipped} optimiser steps were skipped, the last one because {tally.skipped[-1]}",
                where=f"update {self.done}",
                next="lower train.learning_rate, or look at the reward; the last checkpoint is kept",
            )
        tally.take_in(self.processes.gather(tally))
        return tally.report(self.done, self._regularizers(), seconds=time.perf_counter() - start)

    def _passes(self, micro: int, plan: StepPlan, renoising: Renoising) -> Iterator[_Pass]:
        """The samples of one batch and their re-noisings, one after another, with their scores."""
        prompts, generators = self._draw(micro)
        # prompts -> images, with gradient
        rollouts = self.sampler.passes(prompts, plan=plan, renoising=renoising, generator=generators)
        samples = None
        while True:
            with self.accelerator.autocast():
                rollout = next(rollouts, None)
                if rollout is None:
                    return
                scores = self._scores(rollout)  # images  -> a score for each, (N,)
            yield _Pass(rollout, scores)
            if samples is None:
                samples = rollout.images.detach()
            elif renoising.max_drift is not None:
                drift = self.processes.mean((rollout.images.detach() - samples).float().square().mean()).sqrt()
                if float(drift) > renoising.max_drift:
                    return

    def _scores(self, rollout: Rollout) -> Scores:
        scores: Scores = self.objective(rollout.images, rollout.prompts)
        if self.scale is None:
            return scores
        each = self._pooled(scores.per_reward) if self.scale.by == "scale" else scores.per_reward
        seen = self.processes.gather(self.scale.measure(each, rollout.images))
        self.scale.update({name: fmean(size[name] for size in seen) for name in scores.per_reward})
        return Scores(self.objective.total(scores.per_reward, self.scale.divisors), scores.per_reward)

    def _pooled(self, each: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Reward name -> its scores in all processes."""
        parts = self.processes.gather({name: scores.tolist() for name, scores in each.items()})
        return {name: torch.tensor([score for part in parts for score in part[name]]) for name in each}

    def _accumulate_gradient(self, one: _Pass, share: float, tally: _Tally) -> None:
        """From the scores of one pass to gradient, its part in the update's loss being `share`."""
        _require_gradient(one.scores.per_reward)
        penalties = self._penalties(one.rollout)
        tally.add(one, penalties)
        # The gradient of a number that is not finite would spoil the others. With a sharded denoiser the backward
        # pass is work in common, which all do or none.
        spoilt = any(self.processes.gather(bool(tally.problems))) if self.sharded else tally.problems
        if spoilt:
            return
        loss = -one.scores.total.mean()  # higher reward is better
        for name, value in penalties.items():
            loss = loss + self._regularizers()[name] * value
        self.accelerator.backward(loss * share)  # loss    -> LoRA

    def _optimize(self, tally: _Tally) -> None:
        """One optimiser step with the gradient gathered so far, unless a number is not finite."""
        self._average_gradients()
        grad_norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))
        problems = sorted({problem for each in self.processes.gather(tally.problems) for problem in each})
        # With fp16 autocast the gradient scaler skips overflowing updates by itself.
        if not problems and not math.isfinite(grad_norm) and self.accelerator.mixed_precision != "fp16":
            problems = [f"the gradient became {grad_norm}"]
        tally.close(problems, grad_norm)
        if problems:
            self.skipped += 1
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _regularizers(self) -> dict[str, float]:
        return {"kl": self.kl, "lora_norm": self.lora_norm}

    def _penalties(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Regulariser -> its value, of those that have a weight."""
        penalties: dict[str, torch.Tensor] = {}
        if self.kl and rollout.divergence is not None:
            penalties["kl"] = rollout.divergence
        if self.lora_norm:
            penalties["lora_norm"] = squared_norm(self.sampler.pipe)
        return penalties

    def reward_gradients(self) -> tuple[dict[str, float], dict[str, float]]:
        """Each reward's own LoRA gradient on the batch of the coming update: its norm, and cosines between pairs.

        Weighted like in the sum; it takes a rollout and one backward pass for each reward, and changes nothing.
        """
        plan = self.method.plan(self.sampler.steps, Random(f"plan {self.seed} {self.done}"))
        running = self.scale.state() if self.scale else {}
        one = next(self._passes(0, plan, self.method.renoising()))
        flat = {}
        for name in one.scores.per_reward:
            alone = self.objective.total({name: one.scores.per_reward[name]}, self.scale.divisors if self.scale else {})
            grads = torch.autograd.grad(alone.mean(), self.parameters, retain_graph=True, allow_unused=True)
            flat[name] = self.processes.mean(torch.cat([grad.flatten() for grad in grads if grad is not None]))
        if self.scale:
            self.scale.restore(running)
        names = list(flat)
        cosines = {
            f"{first} ~ {second}": float(torch.nn.functional.cosine_similarity(flat[first], flat[second], dim=0))
            for place, first in enumerate(names)
            for second in names[place + 1 :]
        }
        return {name: float(grad.norm()) for name, grad in flat.items()}, cosines

    # What is drawn for an update

    def _draw(self, micro: int) -> tuple[list[str], list[torch.Generator]]:
        """Prompts and noise sources, one for each image, of this process' part of one batch of the coming update."""
        batch = (self.done * self.accumulation + micro) * self.processes.count + self.processes.place
        first = batch * self.batch_size
        places = range(first, first + self.batch_size)
        # Noise is drawn on the CPU, so that a seed means the same images on every device.
        generators = [
            torch.Generator("cpu").manual_seed(Random(f"noise {self.seed} {place} {copy}").getrandbits(62))
            for place in places
            for copy in range(self.images_per_prompt)
        ]
        return [self._prompt(place) for place in places], generators

    @property
    def images_per_prompt(self) -> int:
        """How many images the pipeline's call makes of each prompt."""
        call = self.sampler.call_kwargs
        return int(call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1)

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

    # Several processes

    def _average_gradients(self) -> None:
        """The mean over processes, in one message: a LoRA's gradient is small."""
        if self.processes.count == 1:
            return
        grads = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.parameters
        ]
        mean = self.processes.mean(torch.cat([grad.flatten() for grad in grads]))
        pieces = torch.split(mean, [grad.numel() for grad in grads])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    # Checkpoints

    def save_checkpoint(self, folder: Path, **remembered: Any) -> Path:
        """Writes `folder` with everything that `load_checkpoint` needs, whole or not at all; returns it.

        Arguments:
            remembered: further numbers and texts, for whoever reads the checkpoint.
        """
        state = {
            "update": self.done,
            "seed": self.seed,
            "skipped": self.skipped,
            "scale": self.scale.state() if self.scale else None,
            **remembered,
        }
        return write_checkpoint(folder, Checkpoint(lora_state(self.sampler.pipe), self.optimizer.state_dict(), state))

    def load_checkpoint(self, folder: Path) -> Mapping[str, Any]:
        """Continues from a folder that `save_checkpoint` wrote; returns its numbers and texts.

        Raises:
            CheckpointError: if it is missing, torn, or belongs to a run with another seed or LoRA.
        """
        checkpoint = read_checkpoint(folder)
        state = checkpoint.state
        if state.get("seed") != self.seed:
            raise CheckpointError(
                f"it was made with seed {state.get('seed')}, this run has seed {self.seed}",
                where=str(folder),
                next="resume with the recipe that the run was started with",
            )
        try:
            set_lora_state(self.sampler.pipe, dict(checkpoint.adapter))
            self.optimizer.load_state_dict(checkpoint.optimizer)
            _check_moments(self.optimizer)
            scale, skipped, done = state["scale"] or {}, int(state["skipped"]), int(state["update"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"it does not fit ({type(error).__name__}: {error})",
                where=str(folder),
                next="start anew with --overwrite",
            ) from error
        if self.scale is not None:
            self.scale.restore(scale)
        self.skipped, self.done = skipped, done
        return state


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """That AdamW's state is of its parameters, which it only finds at its next step.

    Raises:
        ValueError: if a moment is missing or has another shape.
    """
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq") if state else ():
            if (shape := getattr(state.get(name), "shape", None)) != parameter.shape:
                raise ValueError(f"{name} of the optimizer is {shape and tuple(shape)}, not {tuple(parameter.shape)}")


@dataclass(frozen=True)
class _Pass:
    """One pass of a rollout, scored."""

    rollout: Rollout
    scores: Scores


@dataclass
class _Tally:
    """What the passes of one update gave: what its report is made of."""

    learning_rate: float
    totals: list[float] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    penalties: list[Mapping[str, float]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # since the last optimiser step
    skipped: list[str] = field(default_factory=list)

    def add(self, one: _Pass, penalties: Mapping[str, torch.Tensor]) -> None:
        """One pass' numbers, and what is not finite among them."""
        self.totals.append(float(one.scores.total.detach().mean()))
        self.scores.append({name: float(each.detach().mean()) for name, each in one.scores.per_reward.items()})
        self.penalties.append({name: float(value.detach()) for name, value in penalties.items()})
        self.counts.append(len(one.rollout.images))
        for name, each in one.scores.per_reward.items():
            for place in (~each.detach().isfinite()).nonzero().flatten().tolist():
                value = float(each[place].detach())
                self.problems.append(f"reward {name!r} of the prompt {one.rollout.prompts[place]!r} became {value}")
        self.problems += [
            f"the penalty {name!r} became {x}" for name, x in self.penalties[-1].items() if not math.isfinite(x)
        ]

    def take_in(self, tallies: Sequence[_Tally]) -> None:
        """Makes this the tally of these passes together; what concerns optimiser steps is the same in all."""
        self.totals = [total for each in tallies for total in each.totals]
        self.scores = [scores for each in tallies for scores in each.scores]
        self.penalties = [penalties for each in tallies for penalties in each.penalties]
        self.counts = [count for each in tallies for count in each.counts]

    def close(self, problems: Sequence[str], grad_norm: float) -> None:
        """One optimiser step, skipped if there are problems."""
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self.skipped.append(f"{problems[0]}{more}")
        else:
            self.grad_norms.append(grad_norm)
        self.problems = []

    def mean(self, each: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Mean over images, name by name."""
        total = sum(self.counts)
        return {
            name: sum(count * one[name] for count, one in zip(self.counts, each, strict=True)) / total
            for name in each[0]
        }

    def report(self, update: int, regularizers: Mapping[str, float], *, seconds: float) -> StepReport:
        """The report of the update."""
        reward = self.mean([{"total": total} for total in self.totals])["total"]
        penalties = self.mean(self.penalties)
        return StepReport(
            update=update,
            loss=sum(regularizers[name] * value for name, value in penalties.items()) - reward,
            reward=reward,
            scores=self.mean(self.scores),
            grad_norm=fmean(self.grad_norms) if self.grad_norms else math.nan,
            learning_rate=self.learning_rate,
            seconds=seconds,
            penalties=penalties,
            optimizer_steps=len(self.grad_norms),
            skipped=tuple(self.skipped),
        )


def _require_gradient(each: Mapping[str, torch.Tensor]) -> None:
    for name, scores in each.items():
        if not scores.requires_grad:
            raise RewardError(
                "its scores carry no gradient, so nothing would be trained",
                where=f"reward {name!r}",
                next=f"run `draft rewards check {name.split('#')[0]}` and tell its author",
            )
