"""A reward on a device of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from draft_core.rewards.protocol import FrozenModule


class OnDevice(FrozenModule):
    """A reward that stays on a device of its own: images go there with their gradient, scores come back.

    Arguments:
        reward: it is moved at once, and not by moving what it is part of.
        device: "cpu", "cuda:1", ...
    """

    def __init__(self, reward: torch.nn.Module, device: torch.device | str) -> None:
        super().__init__()
        self.reward = reward.to(device)
        self.device = torch.device(device)
        self.takes = getattr(reward, "takes", "image")  # type: ignore[misc]  # of this one, not of all

    def _apply(self, fn: Any, recurse: bool = True) -> OnDevice:
        return self  # torch's way to move or convert all that a module holds

    def forward(self, images: torch.Tensor, prompts: Sequence[str], **beside: Mapping[str, Any]) -> torch.Tensor:
        """The reward's scores, on the device of the images; images among the columns go along."""
        moved = {name: {key: [*map(self._here, column)] for key, column in it.items()} for name, it in beside.items()}
        scores: torch.Tensor = self.reward(images.to(self.device), prompts, **moved)
        return scores.to(images.device) if isinstance(scores, torch.Tensor) else scores

    def _here(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value
