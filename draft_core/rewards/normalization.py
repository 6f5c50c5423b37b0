"""What rewards of different units are divided by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class RunningScale:
    """What rewards of different units are divided by, so that their weights mean the same: a running mean.

    Arguments:
        by: "scale" divides by the standard deviation of a reward's scores over a batch, "gradient" by the L2 norm of
            its gradient with respect to an image.
    """

    memory = 0.9  # of the running mean

    def __init__(self, by: str) -> None:
        self.by = by
        self.divisors: dict[str, float] = {}

    def measure(self, per_reward: Mapping[str, torch.Tensor], images: torch.Tensor) -> dict[str, float]:
        """Name -> the present size of each reward's scores (N,), or of their gradient in `images`, 0 without one."""
        if self.by == "scale":
            return {name: float(scores.detach().std(correction=0)) for name, scores in per_reward.items()}
        sizes = {}
        for name, scores in per_reward.items():
            gradient = None
            if scores.requires_grad and images.requires_grad:
                (gradient,) = torch.autograd.grad(scores.sum(), images, retain_graph=True, allow_unused=True)
            sizes[name] = 0.0 if gradient is None else float(gradient.float().flatten(1).norm(dim=1).mean())
        return sizes

    def update(self, sizes: Mapping[str, float]) -> None:
        """Takes new sizes into the running mean; what is zero or not finite is left out."""
        for name, size in sizes.items():
            if size > 0 and math.isfinite(size):
                before = self.divisors.get(name, size)
                self.divisors[name] = self.memory * before + (1 - self.memory) * size

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"by": self.by, "divisors": dict(self.divisors)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`; of one that was measured by something else nothing is kept."""
        self.divisors = dict(state["divisors"]) if state.get("by") == self.by else {}
