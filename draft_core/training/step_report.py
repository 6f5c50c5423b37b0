"""What one update did, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """What one update did, in all processes together.

    Arguments:
        update: how many updates have been made, this one included.
        loss: minus the mean total score, plus the weighted penalties.
        reward: mean weighted total score over the update's images, caps applied; higher is better.
        scores: reward name -> mean score before its weight.
        grad_norm: L2 norm of the LoRA gradient before clipping, mean over the optimiser steps.
        learning_rate: the rate this update was made with.
        seconds: wall time of the update.
        penalties: regulariser -> its value before its weight, mean over passes.
        optimizer_steps: how many optimiser steps the update took: more than one only with prefix reuse, fewer where
            some were skipped.
        skipped: why optimiser steps were skipped, one sentence each; empty when all is well.
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
    skipped: tuple[str, ...] = ()
