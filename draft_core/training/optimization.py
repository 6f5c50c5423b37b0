"""One trained part and its optimiser: gradients averaged over processes, clipped, and stepped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from draft_core.errors import DraftError
from draft_core.training.distributed import Processes
from draft_core.training.precision import LossScale
from draft_core.training.settings import TrainSettings


@dataclass(frozen=True)
class StepOutcome:
    """What became of one optimiser step.

    Arguments:
        problems: what was wrong, in any process; empty if the step was taken.
        grad_norm: the gradient's L2 norm before clipping.
        is_fault: whether the step was left out for something that halving the loss scale does not mend.
    """

    problems: Sequence[str]
    grad_norm: float
    is_fault: bool


class TrainedPart:
    """Parameters with an AdamW of their own.

    Arguments:
        parameters: on their device already.
        settings: rates and bounds.
        in_float16: whether its gradients pass through float16.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        settings: TrainSettings,
        processes: Processes,
        *,
        in_float16: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.max_grad_norm = settings.max_grad_norm
        self.processes = processes
        self.loss_scale = LossScale(needed=in_float16)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.pending = False  # whether a gradient waits for its step

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the coming steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a loss, (), to what the coming step is made of.

        Raises:
            DraftError: if an earlier loss has freed its graph.
        """
        try:
            (loss * self.loss_scale.value).backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise DraftError(
                "it shares its graph with an earlier loss, and that is freed",
                where="loss",
                next="yield their sum, or sample and score anew for each",
            ) from error

    def step(self, problems: Sequence[str]) -> StepOutcome:
        """One optimiser step with the gradient gathered so far, unless something is wrong in any process.

        Arguments:
            problems: what this process found wrong since the last step.
        """
        self._average_gradients()
        self.loss_scale.divide(self.parameters)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        found = sorted({problem for part in self.processes.gather(list(problems)) for problem in part})
        overflow = not found and not math.isfinite(grad_norm)
        before = self.loss_scale.value
        is_fault = bool(found) or (overflow and not self.loss_scale.lowered())
        if overflow:
            found = [f"the gradient became {grad_norm}"]
            if not is_fault:
                found[0] += f" with the loss times {before:g}, which is now {self.loss_scale.value:g}"
        if not found:
            self.optimizer.step()
            self.loss_scale.held()
        self.optimizer.zero_grad()
        self.pending = False
        return StepOutcome(found, grad_norm, is_fault)

    def gradient(self) -> tuple[bool, list[torch.Tensor | None]]:
        """A copy of the gradient gathered so far, and before it whether that waits for its step."""
        return self.pending, [None if weight.grad is None else weight.grad.clone() for weight in self.parameters]

    def put_back(self, gradient: tuple[bool, Sequence[torch.Tensor | None]]) -> None:
        """Takes an earlier `gradient()` in the place of what has been gathered."""
        self.pending, grads = gradient
        for weight, grad in zip(self.parameters, grads, strict=True):
            weight.grad = grad

    def load_optimizer(self, state: dict[str, object]) -> None:
        """Continues from what the optimiser of a `state_dict()` has learnt; its settings stay those of this run.

        Raises:
            ValueError: if it is of other parameters, which AdamW itself only finds at its next step.
        """
        settings = [{**group} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        for parameter, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq") if moments else ():
                if (shape := getattr(moments.get(name), "shape", None)) != parameter.shape:
                    raise ValueError(
                        f"{name} of the optimizer is {shape and tuple(shape)}, not {tuple(parameter.shape)}"
                    )

    def _average_gradients(self) -> None:
        """The mean over processes, in one message: the trained parts are small.

        A parameter without a gradient in every process keeps none: AdamW leaves it alone, as in a single process.
        """
        if self.processes.world_size == 1:
            return
        grads = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.parameters
        ]
        has = torch.tensor([float(parameter.grad is not None) for parameter in self.parameters]).to(grads[0])
        mean = self.processes.mean(torch.cat([*(grad.flatten() for grad in grads), has]))
        *pieces, has = torch.split(mean, [*(grad.numel() for grad in grads), len(grads)])
        for parameter, piece, share in zip(self.parameters, pieces, has.tolist(), strict=True):
            parameter.grad = piece.view_as(parameter) if share else None


@contextmanager
def kept_from_others(parts: Mapping[str, TrainedPart], name: str) -> Iterator[None]:
    """A context after which the gradients of all parts but the named one are what they were before it."""
    others = [weight for other, part in parts.items() if other != name for weight in part.parameters]
    before = [weight.grad for weight in others]
    for weight in others:
        weight.grad = None
    try:
        yield
    finally:
        for weight, grad in zip(others, before, strict=True):
            weight.grad = grad


def learning_rate(settings: TrainSettings, done: int) -> float:
    """The rate of the update that follows `done` earlier ones.

    Linear warm-up that starts above zero, so that the first update is not empty; constant; linear cool-down.
    """
    up, down = (done + 1) / (settings.warmup_steps + 1), (settings.steps - done) / (settings.cooldown_steps + 1)
    return settings.learning_rate * min(1.0, up, max(down, 1 / (settings.cooldown_steps + 1)))
