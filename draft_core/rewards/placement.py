"""A reward on a device of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from draft_core.rewards.protocol import FrozenModule, scope, takes, with_components


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
        self.takes, self.scope = takes(reward), scope(reward)

    def _apply(self, fn: Any, recurse: bool = True) -> OnDevice:
        return self  # torch's way to move or convert all that a module holds

    def forward(self, images: torch.Tensor, prompts: Sequence[str], **beside: Mapping[str, Any]) -> torch.Tensor:
        """The reward's scores, on the device of the images; images among the columns go along."""
        scores: torch.Tensor = self.reward(images.to(self.device), prompts, **self._moved(beside))
        return scores.to(images.device) if isinstance(scores, torch.Tensor) else scores

    def score_with_components(
        self, images: torch.Tensor, prompts: Sequence[str], **beside: Mapping[str, Any]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The reward's scores and their parts, on the device of the images; no parts if it tells none."""
        scores, parts = with_components(self.reward, images.to(self.device), prompts, **self._moved(beside))
        return scores.to(images.device), {name: values.to(images.device) for name, values in parts.items()}

    def _moved(self, beside: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: {key: [*map(self._here, column)] for key, column in it.items()} for name, it in beside.items()}

    def _here(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value
