"""LoRA on a pipeline's denoiser: a thin layer over peft and diffusers' own loaders.

Tensors wing. May import: errors, seams.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from draft_core.errors import CheckpointError, RecipeError, SamplerError
from draft_core.seams import find_denoiser

ADAPTER = "default"
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for

# The projections of every attention block in diffusers' UNets and transformers.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(pipe: Any, *, rank: int, alpha: float | None = None, targets: Sequence[str] = ATTENTION) -> None:
    """Freezes the whole pipeline and adds a trainable LoRA, in float32, to its denoiser.

    B starts at zero, so that the first samples are those of the base model.

    Arguments:
        rank: r of the LoRA (Hu et al. 2022, arXiv 2106.09685).
        alpha: numerator of its scale alpha / r; None makes the scale 1.
        targets: name endings of the linear layers to adapt.

    Raises:
        RecipeError: if no layer matches `targets`.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    _, denoiser = find_denoiser(pipe)
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets), init_lora_weights="gaussian")
    try:
        denoiser.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise RecipeError(
            f"no layer of {type(denoiser).__name__} can be adapted at {', '.join(targets)} ({error})",
            where="model.lora.targets",
            next="name endings of its linear layers",
        ) from error
    for parameter in trainable(pipe):
        parameter.data = parameter.data.float()


def trainable(pipe: Any) -> Iterator[torch.nn.Parameter]:
    """The denoiser's parameters that require a gradient, in a fixed order."""
    _, denoiser = find_denoiser(pipe)
    return (parameter for parameter in denoiser.parameters() if parameter.requires_grad)


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """The base model inside, without a second copy of it; the tuned one afterwards."""
    _, denoiser = find_denoiser(pipe)
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def squared_norm(pipe: Any) -> torch.Tensor:
    """Sum over layers of |scale B A|^2, the squared Frobenius norm of what the LoRA adds, with gradient, ().

    The product is never built: |B A|^2 = sum((B^T B) * (A A^T)).
    """
    _, denoiser = find_denoiser(pipe)
    norms = []
    for layer in denoiser.modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
            down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
            norms.append(((up.T @ up) * (down @ down.T)).sum() * layer.scaling[ADAPTER] ** 2)
    return torch.stack(norms).sum()


def lora_state(pipe: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights on the CPU, in peft's names."""
    _, denoiser = find_denoiser(pipe)
    state = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def set_lora_state(pipe: Any, state: dict[str, torch.Tensor]) -> None:
    """Puts weights of `lora_state` back into the adapter.

    Raises:
        CheckpointError: if they do not fit the adapter, by name or by shape.
    """
    expected = {name: tensor.shape for name, tensor in lora_state(pipe).items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"its LoRA does not fit this model: {len(different)} of {len(expected)} tensors differ, "
            f"first {different[0]}",
            next="resume with the recipe that the run was started with",
        )
    _, denoiser = find_denoiser(pipe)
    set_peft_model_state_dict(denoiser, state, adapter_name=ADAPTER)


def save_lora(pipe: Any, folder: Path) -> Path:
    """Writes the adapter so that plain diffusers' `pipe.load_lora_weights(folder)` loads it; returns the file."""
    name, denoiser = find_denoiser(pipe)
    save = getattr(pipe, "save_lora_weights", None)
    if save is None:
        raise SamplerError(f"{type(pipe).__name__} cannot save LoRA weights", where="pipeline")
    arguments: dict[str, Any] = {f"{name}_lora_layers": lora_state(pipe)}
    if (metadata := f"{name}_lora_adapter_metadata") in inspect.signature(save).parameters:
        arguments[metadata] = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in denoiser.peft_config[ADAPTER].to_dict().items()
        }
    save(folder, safe_serialization=True, **arguments)
    return folder / WEIGHTS_FILE


def load_lora(pipe: Any, folder: Path, *, scale: float = 1.0) -> None:
    """Loads a LoRA from a folder that `save_lora`, or any diffusers trainer, wrote.

    Arguments:
        scale: factor of the adapter's contribution; 0 is the base model, 1 what was trained.

    Raises:
        CheckpointError: if there is no LoRA in `folder`, or its file is damaged.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise CheckpointError(f"there is no {WEIGHTS_FILE}", where=str(folder), next="give the lora folder of a run")
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"it is not a safetensors file ({error})", where=str(file), next="copy it again"
        ) from error
    pipe.load_lora_weights(folder, weight_name=WEIGHTS_FILE, adapter_name=ADAPTER)
    pipe.set_adapters([ADAPTER], [scale])
