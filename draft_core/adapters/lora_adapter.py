"""The LoRA of a pipeline as the trainer sees it: `adapter.Adapter` by the functions of `lora` and `files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from draft_core.adapters.files import write_lora
from draft_core.adapters.fitting import DOWN
from draft_core.adapters.lora import (
    adapters_off,
    adapters_scaled,
    add_lora,
    lora_state,
    set_lora_state,
    squared_norm,
    trainable,
)
from draft_core.adapters.round_trip import loaded_state, unreadable
from draft_core.errors import CheckpointError, DraftError, first_line


class Lora:
    """The LoRA of a pipeline, as `adapter.Adapter` describes it.

    Arguments:
        pipe: a diffusers pipeline.
        rank, alpha, targets: as in `add_lora`; for `attach` alone.
        init: a LoRA that training goes on from, as `load_lora` takes it; for `attach` alone.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] | None = None,
        init: Path | None = None,
    ) -> None:
        self.pipe = pipe
        self.rank, self.alpha, self.targets, self.init = rank, alpha, targets, init
        self.unreadable: str | None = None  # `round_trip.unreadable`, once it has been asked

    def attach(self) -> None:
        """Adds it to the denoisers, freezing all else, and finds out how it is saved.

        Raises:
            RecipeError: if no layer matches.
            CheckpointError: if the LoRA to go on from does not fit.
        """
        add_lora(self.pipe, rank=self.rank, alpha=self.alpha, targets=self.targets)
        self.unreadable = unreadable(self.pipe)
        if self.init is not None:
            set_lora_state(self.pipe, self._state_of(self.init))

    def notes(self) -> list[str]:
        """That its file is one for `load_lora`, where diffusers cannot load the pipeline's LoRAs."""
        if not self.unreadable:
            return []
        name = type(self.pipe).__name__
        return [
            f"diffusers' loader for LoRAs of {name} does not read this one ({self.unreadable}); its file will be one "
            "that draft_core.load_lora reads"
        ]

    def parameters(self) -> list[torch.nn.Parameter]:
        """The denoisers' LoRA weights, in a fixed order; raises DraftError if there are none."""
        if not (found := list(trainable(self.pipe))):
            raise DraftError(
                f"the {type(self.pipe).__name__} carries no LoRA to train",
                where="pipeline",
                next="call `add_lora` first",
            )
        return found

    def base_model(self) -> AbstractContextManager[None]:
        """The base model inside, in every component."""
        return adapters_off(self.pipe)

    def scaled(self, scale: float) -> AbstractContextManager[None]:
        """Its contribution times `scale` inside, in every component."""
        return adapters_scaled(self.pipe, scale)

    def penalty(self) -> torch.Tensor:
        """The squared Frobenius norm of what it adds to the denoisers' weights, with gradient, ()."""
        return squared_norm(self.pipe)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The denoisers' LoRA weights on the CPU, in peft's names behind the component's."""
        return lora_state(self.pipe)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts weights of `state_dict` back; raises CheckpointError if they do not fit."""
        set_lora_state(self.pipe, dict(state))

    def save(self, folder: Path) -> Path:
        """Writes it as `files.write_lora` does, in a format that comes back; returns the file."""
        if self.unreadable is None:
            self.unreadable = unreadable(self.pipe)
        return write_lora(self.pipe, folder, own_format=bool(self.unreadable))

    def _state_of(self, init: Path) -> dict[str, torch.Tensor]:
        """The weights of another LoRA of the same layers and rank."""
        where, name = f"model.lora.init {init}", type(self.pipe).__name__
        try:
            state = loaded_state(self.pipe, init)
        except DraftError:
            raise
        except Exception as error:  # diffusers', peft's or torch's
            raise CheckpointError(
                f"it cannot be loaded into {name} ({first_line(error)})", where=where, next="give a LoRA of this model"
            ) from error
        there, here = _ranks(state), _ranks(lora_state(self.pipe))
        if not there:
            raise CheckpointError(f"it adapts no layer of {name}", where=where, next="give a LoRA of this model")
        if there.keys() != here.keys():
            endings = sorted({_ending(layer) for layer in there})
            raise CheckpointError(
                f"it adapts {len(there)} layers, the recipe {len(here)}",
                where=where,
                next=f"set model.lora.targets to what it adapts, [{', '.join(endings)}]",
            )
        if other := sorted({*there.values()} - {self.rank}):
            next = f"set model.lora.rank={other[0]}" if len({*there.values()}) == 1 else "give one of a single rank"
            raise CheckpointError(
                f"its rank is {' and '.join(map(str, other))}, the recipe's {self.rank}", where=where, next=next
            )
        return state


def _ranks(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Layer, behind its component's name -> rank."""
    return {name.removesuffix(DOWN): len(down) for name, down in state.items() if name.endswith(DOWN)}


def _ending(layer: str) -> str:
    """The last part of a layer's name that is no number, and what follows it."""
    *_, owner, name = layer.split(".")
    return f"{owner}.{name}" if name.isdecimal() else name
