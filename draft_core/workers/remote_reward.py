"""A reward that computes in another process, as a module of this one: scores with their gradient in the images.

The gradient is that of the process; the sums around it are autograd's of this one. A reward that uses its images in
several places has these gradients added there before those of other rewards are.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from draft_core.errors import RewardError
from draft_core.rewards.protocol import FrozenModule, Scope, Takes
from draft_core.workers.precision import settings_of
from draft_core.workers.worker import Scored, Worker


class RemoteReward(FrozenModule):
    """A reward whose `Worker` computes it.

    Arguments:
        worker: with its reward made.
        differentiable: whether a gradient is ever asked for, as the reward's spec says.
        scope: what a score depends on, likewise.
    """

    def __init__(self, worker: Worker, *, differentiable: bool = True, scope: Scope = "image") -> None:
        super().__init__()
        self.worker = worker
        self.differentiable = differentiable
        self.takes, self.scope = cast(Takes, worker.takes), scope

    def forward(
        self, images: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> torch.Tensor:
        """Scores, float32 (N,), on the device of the images (N, 3, H, W) or videos (N, F, 3, H, W)."""
        if not (self.differentiable and torch.is_grad_enabled() and images.requires_grad):
            return self.worker.score(images, prompts, columns).scores
        call = _Call(self.worker, prompts, columns, settings_of(images.device))
        scores: torch.Tensor = _Scores.apply(images, call)
        return scores

    def score_with_components(
        self, images: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The scores and their parts, without gradient; no parts if the reward tells none."""
        scored = self.worker.score(images, prompts, columns, components=True)
        return scored.scores, scored.parts


@dataclass
class _Call:
    """A call whose gradient may be asked for, as long as the graph holds it."""

    worker: Worker
    prompts: Sequence[str]
    columns: Mapping[str, Sequence[Any]] | None
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.number = self.worker.new_call()
        weakref.finalize(self, self.worker.forget, self.number).atexit = False

    def scored(self, images: torch.Tensor) -> Scored:
        return self.worker.score(images, self.prompts, self.columns, call=self.number, settings=self.settings)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, call: _Call) -> torch.Tensor:
        scored = call.scored(images)
        ctx.call = call
        ctx.save_for_backward(images)
        if not scored.has_gradient:
            ctx.mark_non_differentiable(scored.scores)
        return scored.scores

    @staticmethod
    def backward(ctx: Any, grad_scores: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        call = ctx.call
        if torch.is_grad_enabled():  # of a backward pass with create_graph
            raise RewardError(
                "a gradient of its gradient is asked for, and its process gives none",
                where=call.worker.where,
                next="leave out `environment`, and run the reward in this process",
            )
        (images,) = ctx.saved_tensors
        return call.worker.gradient(call.number, grad_scores, lambda: call.scored(images), images.device), None
