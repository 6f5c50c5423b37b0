"""The precision that a training computes in: autocast, and what keeps small gradients within the range of float16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from draft_core.errors import RecipeError
from draft_core.sampling.pipelines import has_float16

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: torch.device, mixed_precision: str) -> AbstractContextManager[Any]:
    """The context in which sampling and scoring run; one without effect for "no".

    Raises:
        RecipeError: if the device does not compute in this precision.
    """
    if mixed_precision == "no":
        return nullcontext()
    if mixed_precision == "fp16" and device.type == "cpu":
        raise RecipeError("fp16 needs a GPU", where="train.mixed_precision", next="use bf16, or no")
    try:
        return torch.autocast(device.type, dtype=AUTOCAST[mixed_precision])
    except RuntimeError as error:
        raise RecipeError(
            f"{device} does not compute in {mixed_precision} ({error})", where="train.mixed_precision", next="use no"
        ) from error


def needs_loss_scale(mixed_precision: str, networks: Iterable[torch.nn.Module]) -> bool:
    """Whether gradients pass through float16, by autocast or by the weights of one of the networks."""
    return mixed_precision == "fp16" or has_float16(networks)


class LossScale:
    """What a loss is multiplied by before its backward pass, and the gradient divided by afterwards.

    float16 holds nothing below 6e-8, and a reward of small weight has smaller gradients. Starting value, halving and
    doubling are those of `torch.amp.GradScaler` (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2). Being a
    power of two, the factor changes no bit of what is within the range.

    Arguments:
        needed: whether gradients pass through float16; where not, the factor is and stays 1.

    Attributes:
        value: the factor.
    """

    start = 2.0**16
    patience = 2000  # steps without overflow after which it is doubled

    def __init__(self, *, needed: bool) -> None:
        self.needed = needed
        self.value = self.start if needed else 1.0
        self.steps = 0  # since the last change

    def divide(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Takes the factor out of the gradients."""
        if self.needed:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.value

    def lowered(self) -> bool:
        """Halves the factor after an overflow; whether that was possible, which it is not below 1."""
        if not self.needed or self.value <= 1.0:
            return False
        self.value, self.steps = self.value / 2, 0
        return True

    def held(self) -> None:
        """Counts a step whose gradient was finite."""
        self.steps += self.needed
        if self.steps == self.patience:
            self.value, self.steps = self.value * 2, 0

    def state(self) -> list[float]:
        """What `restore` takes."""
        return [self.value, self.steps]

    def restore(self, state: list[float]) -> None:
        """Continues from a `state`; where none is needed, the factor stays 1."""
        if self.needed:
            self.value, self.steps = float(state[0]), int(state[1])
