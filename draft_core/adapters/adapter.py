"""What the trainer asks of whatever is trained on a pipeline; a LoRA is one answer (`lora_adapter.Lora`),
attention to people another (`users.UserAdapter`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch


class Adapter(Protocol):
    """Trainable weights that change what a pipeline does, kept apart from its own."""

    def attach(self) -> None:
        """Freezes the pipeline and adds the weights to it, so that it does at first what it did before.

        Raises:
            RecipeError: if they fit nowhere.
        """
        ...

    def notes(self) -> list[str]:
        """What a user should know of it before training, a sentence without a full stop each; after `attach`."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights that are trained, float32, always in the same order.

        Raises:
            DraftError: if it is not attached.
        """
        ...

    def base_model(self) -> AbstractContextManager[None]:
        """A context inside which the pipeline is the untuned one, in every component."""
        ...

    def scaled(self, scale: float) -> AbstractContextManager[None]:
        """A context inside which what was trained counts `scale` times: 0 is the base model, 1 what was trained."""
        ...

    def penalty(self) -> torch.Tensor:
        """How far the weights lead away from the base model, with gradient, ()."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights on the CPU, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts weights of `state_dict` back.

        Raises:
            CheckpointError: if they do not fit, by name or by shape.
        """
        ...

    def save(self, folder: Path) -> Path:
        """Writes them as files that plain diffusers loads; returns the first."""
        ...
