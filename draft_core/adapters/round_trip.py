"""What comes back of a LoRA that diffusers' loaders read: asked before training, and to go on from a LoRA."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from draft_core.adapters.files import files_by_denoiser, load_files, write_lora
from draft_core.adapters.fitting import UP, hushed
from draft_core.adapters.lora import ADAPTER, adapter_names, lora_state
from draft_core.errors import CheckpointError, first_line
from draft_core.sampling.pipelines import find_denoisers, networks

TRIED = "tried"  # the name of an adapter that is loaded to be looked at, and taken off again


def unreadable(pipe: Any) -> str:
    """Why diffusers' loader for this pipeline does not give its LoRA back as it was saved; empty where it does.

    It is tried with a file of random weights; the pipeline is afterwards as before.
    """
    if not (hasattr(pipe, "save_lora_weights") and hasattr(pipe, "load_lora_weights")):
        return "it has none"
    generator = torch.Generator().manual_seed(0)
    state = {
        # every floating point type holds these numbers as they are
        name: torch.randint(-8, 8, tensor.shape, generator=generator).to(tensor.dtype) / 8
        for name, tensor in lora_state(pipe).items()
    }
    with tempfile.TemporaryDirectory() as place:
        try:
            write_lora(pipe, Path(place), state=state)
            found = loaded_state(pipe, Path(place))
        except Exception as error:  # whatever a pipeline raises at a LoRA that it was not written for
            return f"{type(error).__name__}: {first_line(error)}"
    wrong = [name for name in {**state, **found} if not _is_same(state.get(name), found.get(name))]
    return f"{len(wrong)} of {len(state)} tensors come back otherwise, first {min(wrong)}" if wrong else ""


def _is_same(tensor: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return tensor is not None and other is not None and torch.equal(tensor, other.to(tensor.dtype))


def loaded_state(pipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA in a folder as the pipeline's loader understands it, in the names and the scale of the one it carries.

    The pipeline is afterwards as before.

    Arguments:
        pipe: carries an adapter.
        folder: as `load_lora` takes it.

    Raises:
        CheckpointError: if there is no LoRA in `folder`, its file is damaged, or it adapts a text encoder too.
        Exception: whatever the pipeline's loader raises at a LoRA of another model.
    """
    parts = networks(pipe).values()
    flags = [(weight, weight.requires_grad) for network in parts for weight in network.parameters()]
    denoisers = find_denoisers(pipe)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(), hushed():
            warnings.filterwarnings("ignore", message=".*`peft_config` attribute")
            load_files(pipe, files_by_denoiser(pipe, folder), TRIED)
        if any(TRIED in adapter_names(network) for network in parts if network not in [*denoisers.values()]):
            raise CheckpointError(
                "it adapts a text encoder too, which is not trained", where=str(folder), next="give one of the denoiser"
            )
        return _in_scale(denoisers, lora_state(pipe, TRIED))
    finally:
        for network in parts:
            _take_off(network, TRIED)
        for weight, requires_grad in flags:
            weight.requires_grad_(requires_grad)


def _in_scale(denoisers: Mapping[str, Any], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The second factors times the ratio of the scales that the tried adapter and the pipeline's own have."""
    for component, denoiser in denoisers.items():
        for layer, module in denoiser.named_modules():
            if isinstance(module, LoraLayer) and {TRIED, ADAPTER} <= module.scaling.keys():
                ratio = module.scaling[TRIED] / module.scaling[ADAPTER]
                name = f"{component}.{layer}{UP}"
                state[name] = state[name] * ratio
    return state


def _take_off(network: torch.nn.Module, adapter: str) -> None:
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            layer.set_adapter([name for name in layer.lora_A if name != adapter])
            layer.delete_adapter(adapter)
    getattr(network, "peft_config", {}).pop(adapter, None)
