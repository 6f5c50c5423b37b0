"""The trainer: one update read as data flowing, and a generator of reports around it.

Everything random in update u is drawn from the seed and u alone, so a resumed run draws what an
uninterrupted one would. Tensors wing. May import: errors, lora, objective, protocols, sampler.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from draft_core.errors import CheckpointError, DraftError, RewardError
from draft_core.lora import lora_state, set_lora_state, trainable
from draft_core.objective import Objective
from draft_core.protocols import Estimator
from draft_core.sampler import DifferentiableSampler


@dataclass(frozen=True)
class StepReport:
    """What one update did.

    Arguments:
        update: how many updates have been made, this one included.
        loss: minus the mean total score.
        reward: mean weighted total score over the update's images; higher is better.
        scores: reward name -> mean score before its weight.
        grad_norm: L2 norm of the LoRA gradient before clipping.
        learning_rate: the rate this update was made with.
        seconds: wall time of the update.
    """

    update: int
    loss: float
    reward: float
    scores: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float


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
        device: str | None = None,
    ) -> None:
        # Passes are accumulated by hand: accelerate keeps their number in one place for the whole process,
        # where a second trainer would change it for the first.
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
        if self.accelerator.num_processes > 1:
            raise DraftError("several processes are not supported yet", where="trainer", next="start one process")
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
        """One update of the LoRA.

        Raises:
            RewardError: if reward or gradient is not finite; the weights are then as before the update.
        """
        start = time.perf_counter()
        learning_rate = self._set_learning_rate()
        passes = [self._accumulate_gradient(micro) for micro in range(self.accumulation)]
        scores = {name: fmean(each[name] for each in passes) for name in passes[0]}
        grad_norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))
        self._check_finite(scores, grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        reward = sum(self.objective.weights[name] * score for name, score in scores.items())
        seconds = time.perf_counter() - start
        return StepReport(self.done, -reward, reward, scores, grad_norm, learning_rate, seconds)

    def _accumulate_gradient(self, micro: int) -> dict[str, float]:
        """One pass from prompts to gradient: the whole method. Returns each reward's mean score."""
        prompts, generator, plan = self._draw(micro)
        with self.accelerator.autocast():
            rollout = self.sampler(prompts, plan=plan, generator=generator)  # prompts -> images, with gradient
            scores = self.objective(rollout.images, rollout.prompts)  # images  -> a score for each, (N,)
            _require_gradient(scores.each)
            loss = -scores.total.mean()  # higher reward is better
        self.accelerator.backward(loss / self.accumulation)  # loss    -> LoRA
        return {name: float(each.detach().mean()) for name, each in scores.each.items()}

    def _draw(self, micro: int) -> tuple[list[str], torch.Generator, Any]:
        """Prompts, noise source and plan of one pass of the coming update."""
        first = (self.done * self.accumulation + micro) * self.batch_size
        prompts = [self._prompt(index) for index in range(first, first + self.batch_size)]
        noise = Random(f"noise {self.seed} {self.done} {micro}").getrandbits(62)
        # Noise is drawn on the CPU, so that a seed means the same pictures on every device.
        generator = torch.Generator("cpu").manual_seed(noise)
        plan = self.estimator.plan(self.sampler.steps, Random(f"plan {self.seed} {self.done}"))
        return prompts, generator, plan

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


def _require_gradient(each: Mapping[str, torch.Tensor]) -> None:
    for name, scores in each.items():
        if not scores.requires_grad:
            raise RewardError(
                "its scores carry no gradient, so nothing would be trained",
                where=f"reward {name!r}",
                next=f"run `draft rewards check {name.split('#')[0]}` and tell its author",
            )
