"""The mean gradient of several processes, without starting any."""

from __future__ import annotations

from typing import Any

import torch

from draft_core.training.optimization import TrainedPart
from draft_core.training.settings import TrainSettings


class Two:
    """This process and another one that has found the same."""

    rank, world_size = 0, 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_a_weight_without_a_gradient_in_any_process_is_not_decayed() -> None:
    used, unused, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    part = TrainedPart([used, unused, frozen], TrainSettings(weight_decay=0.5), Two())  # type: ignore[arg-type]
    part.backward(used.sum())
    part.step([])
    assert not torch.equal(used, torch.ones(3))
    assert torch.equal(unused, torch.ones(3))
    assert torch.equal(frozen, torch.ones(3))
