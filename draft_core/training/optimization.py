"""One trained part and its optimiser: gradients averaged over processes, clipped, and stepped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator

from draft_core.training.distributed import Processes
from draft_core.training.settings import TrainSettings


class TrainedPart:
    """Parameters with an AdamW of their own.

    Arguments:
        parameters: on their device already.
        settings: rates and bounds.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        settings: TrainSettings,
        accelerator: Accelerator,
        processes: Processes,
    ) -> None:
        self.parameters = list(parameters)
        self.max_grad_norm = settings.max_grad_norm
        self.accelerator = accelerator
        self.processes = processes
        optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.pending = False  # whether a gradient waits for its step

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the coming steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, problems: Sequence[str]) -> tuple[list[str], float]:
        """One optimiser step with the gradient gathered so far, unless something is wrong in any process.

        Arguments:
            problems: what this process found wrong since the last step.

        Returns:
            Everything that is wrong, empty if the step was taken; and the gradient's L2 norm before clipping.
        """
        self._average_gradients()
        grad_norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))
        found = sorted({problem for part in self.processes.gather(list(problems)) for problem in part})
        # With fp16 autocast the gradient scaler skips overflowing updates by itself.
        if not found and not math.isfinite(grad_norm) and self.accelerator.mixed_precision != "fp16":
            found = [f"the gradient became {grad_norm}"]
        if not found:
            self.optimizer.step()
        self.drop_gradient()
        return found, grad_norm

    def drop_gradient(self) -> None:
        """Forgets the gradient gathered so far."""
        self.optimizer.zero_grad()
        self.pending = False

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
        """The mean over processes, in one message: the trained parts are small."""
        if self.processes.world_size == 1:
            return
        grads = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.parameters
        ]
        mean = self.processes.mean(torch.cat([grad.flatten() for grad in grads]))
        pieces = torch.split(mean, [grad.numel() for grad in grads])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
