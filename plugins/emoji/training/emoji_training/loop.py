"""The training loop that the VAE, CLIP and UNet stages share: schedule by the clock, EMA, exact resume.

A stage on borrowed cores cannot know how many steps it will get, so the learning rate follows the share of
the *minutes* that is used up, not a step count; the used time is part of the checkpoint.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Loss = Callable[[torch.Generator], Tensor]


def side_by_side(worker: Callable[..., None], processes: int, folder: Path, *arguments: Any) -> None:
    """Call `worker(rank, world, *arguments)` in so many processes of one thread, which can average their gradients.

    A single one is this process. They meet by a file in `folder`.
    """
    if processes == 1:
        worker(0, 1, *arguments)
        return
    rendezvous = (folder / "rendezvous").resolve()
    rendezvous.parent.mkdir(parents=True, exist_ok=True)
    rendezvous.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_joined, (processes, worker, rendezvous, arguments), nprocs=processes)


def _joined(rank: int, world: int, worker: Callable[..., None], rendezvous: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(minutes=30)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=wait)
    worker(rank, world, *arguments)
    dist.barrier()
    dist.destroy_process_group()


@dataclass(frozen=True)
class Budget:
    """How long a stage runs: minutes of training, or an exact number of steps (tests want the latter)."""

    minutes: float | None = None
    steps: int | None = None

    def share(self, elapsed_s: float, step: int) -> float:
        """The share of the budget used up; at 1 the stage ends."""
        return step / self.steps if self.steps is not None else elapsed_s / (60 * (self.minutes or 1))


@dataclass(frozen=True)
class Recipe:
    """AdamW with a warm-up and a cosine; EMA decay; minutes between checkpoints.

    `slow` names a part, by the start of its parameters' names, and the factor on its learning rate.
    """

    lr: float
    weight_decay: float = 1e-2
    ema: float = 0.9985
    warm_up: float = 0.03
    final: float = 0.01
    clip: float = 1.0
    checkpoint_minutes: float = 3.0
    betas: tuple[float, float] = (0.9, 0.99)
    slow: tuple[str, float] = ("", 1.0)

    def lr_at(self, share: float) -> float:
        """The learning rate when this share of the budget is used up."""
        if share < self.warm_up:
            return self.lr * max(share / self.warm_up, 1e-3)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (share - self.warm_up) / (1 - self.warm_up))))
        return self.lr * (self.final + (1 - self.final) * cosine)


@dataclass
class Progress:
    """What one step left behind; `loss` is the mean since the last report."""

    step: int
    share: float
    loss: float
    steps_per_s: float


@dataclass
class Training:
    """A module, its optimizer, EMA and random state: everything a checkpoint holds.

    `rank` of `world` processes train together: each draws its own batches and the gradients are averaged
    once a step, which survives a busy machine better than threads that meet at every operation.
    """

    module: nn.Module
    recipe: Recipe
    budget: Budget
    checkpoint: Path
    rank: int = 0
    world: int = 1
    seed: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    loss_history: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.parameters = parameters = [p for _, p in named]
        prefix, factor = self.recipe.slow
        scales = [factor if n.startswith(prefix) else 1.0 for n, _ in named]
        groups = [
            {"params": [p for p, s in zip(parameters, scales, strict=True) if s == scale], "scale": scale}
            for scale in sorted(set(scales), reverse=True)
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.recipe.lr,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(self.seed + 7919 * self.rank)
        if self._file().exists():
            self._restore()
        else:
            self.ema = [p.detach().clone() for p in parameters]

    def run(self, loss: Loss, report_every: int = 100) -> Iterator[Progress]:
        """Train to the end of the budget; yield a Progress every `report_every` steps and at the end."""
        total, count, mark, marked = 0.0, 0, time.monotonic(), self.step
        saved = mark
        while (share := self._shared_share()) < 1:
            begin = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = group["scale"] * self.recipe.lr_at(share)
            value = loss(self.generator)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self._average_gradients()
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip, foreach=True)
            self.optimizer.step()
            # A young average must not remember the random start.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
            self.step += 1
            total, count = total + value.item(), count + 1
            now = time.monotonic()
            self.elapsed_s += now - begin
            if self.step % report_every == 0:
                self.loss_history.append((self.step, total / count))
                yield Progress(self.step, share, total / count, (self.step - marked) / (now - mark))
                total, count, mark, marked = 0.0, 0, time.monotonic(), self.step
            if self._agree(now - saved > 60 * self.recipe.checkpoint_minutes):
                self.save()
                saved = time.monotonic()
        self.save()
        if count:
            yield Progress(self.step, 1.0, total / count, (self.step - marked) / (time.monotonic() - mark))

    def averaged(self) -> dict[str, Tensor]:
        """The module's state with the EMA in place of the trained parameters, on the CPU in float32."""
        state = {k: v.detach().cpu().clone() for k, v in self.module.state_dict().items()}
        names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        state.update({n: e.detach().cpu().float().clone() for n, e in zip(names, self.ema, strict=True)})
        return state

    def save(self) -> None:
        """Write the checkpoint aside and rename it, so that a kill never leaves half a file."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "module": self.module.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "generator": self.generator.get_state(),
            "loss_history": self.loss_history,
        }
        if self.rank:  # the weights are the same in every process; only the random state is its own
            state = {"generator": self.generator.get_state(), "step": self.step}
        file = self._file()
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        torch.save(state, aside)
        os.replace(aside, file)

    def _file(self) -> Path:
        return self.checkpoint if self.rank == 0 else self.checkpoint.with_suffix(f".rank{self.rank}.pt")

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        own = torch.load(self._file(), map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.parameters[0].device
        self.ema = [e.to(device) for e in state["ema"]]
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.loss_history = [tuple(pair) for pair in state["loss_history"]]
        self.generator.set_state(own["generator"])
        if own["step"] != self.step:  # killed between the two files: go on with fresh draws, not stale ones
            self.generator.manual_seed(self.seed + 7919 * self.rank + self.step)

    def _shared_share(self) -> float:
        share = self.budget.share(self.elapsed_s, self.step)
        if self.world == 1:
            return share
        agreed = torch.tensor(share, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return float(agreed)

    def _agree(self, due: bool) -> bool:
        if self.world == 1:
            return due
        agreed = torch.tensor(int(due))
        dist.broadcast(agreed, 0)
        return bool(agreed)

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        flat = flat.bfloat16()  # half the traffic; Adam does not feel the rounding
        dist.all_reduce(flat)
        flat /= self.world
        at = 0
        for p in self.parameters:
            if p.grad is not None:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()
