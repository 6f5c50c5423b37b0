"""LoRA on a pipeline's denoiser: a thin layer over peft and diffusers' own loaders.

Tensors wing. May import: errors, seams.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from draft_core.errors import CheckpointError, RecipeError
from draft_core.seams import find_denoisers

ADAPTER = "default"
CONFIG_KEY = "lora_config"  # of the metadata, where a pipeline has no loader of its own
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for

# The projections of every attention block in diffusers' UNets and transformers.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

# Denoisers with attention projections under other names as well: endings of the names of linear layers.
FURTHER_TARGETS: dict[str, tuple[str, ...]] = {
    # most blocks hold query, key, value and feed-forward in one layer, and their output in another
    "Flux2Transformer2DModel": ("attn.to_qkv_mlp_proj", "attn.to_out"),
    "Kandinsky5Transformer3DModel": ("to_query", "to_key", "to_value", "attention.out_layer"),
}


def add_lora(pipe: Any, *, rank: int, alpha: float | None = None, targets: Sequence[str] | None = None) -> None:
    """Freezes the whole pipeline and adds a trainable LoRA, in float32, to its denoiser, or to each of several.

    B starts at zero, so that the first samples are those of the base model.

    Arguments:
        rank: r of the LoRA (Hu et al. 2022, arXiv 2106.09685).
        alpha: numerator of its scale alpha / r; None makes the scale 1.
        targets: name endings of the linear layers to adapt; None takes the attention, `default_targets`.

    Raises:
        RecipeError: if no layer matches `targets`.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    for denoiser in find_denoisers(pipe).values():
        chosen = list(default_targets(denoiser) if targets is None else targets)
        config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=chosen, init_lora_weights="gaussian")
        try:
            _inject(denoiser, config)
        except ValueError as error:
            raise RecipeError(
                f"no layer of {type(denoiser).__name__} can be adapted at {', '.join(chosen)} ({error})",
                where="model.lora.targets",
                next="name endings of its linear layers",
            ) from error
    for parameter in trainable(pipe):
        parameter.data = parameter.data.float()


def default_targets(denoiser: Any) -> tuple[str, ...]:
    """The attention projections of a denoiser: endings of names, then whole names where an ending would not do."""
    endings = FURTHER_TARGETS.get(type(denoiser).__name__, ())
    layers = (name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear))
    return (*ATTENTION, *(name for name in layers if name.endswith(endings)))


def trainable(pipe: Any) -> Iterator[torch.nn.Parameter]:
    """The denoisers' parameters that require a gradient, in a fixed order."""
    weights = (weight for denoiser in find_denoisers(pipe).values() for weight in denoiser.parameters())
    return (weight for weight in weights if weight.requires_grad)


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """The base model inside, without a second copy of it; the tuned one afterwards."""
    layers = [layer for _, layer in _adapted_layers(pipe)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def adapters_scaled(pipe: Any, scale: float) -> Iterator[None]:
    """The adapter's contribution times `scale` inside: 0 is the base model, 1 what was trained; 1 afterwards."""
    set_scale(pipe, scale)
    try:
        yield
    finally:
        set_scale(pipe, 1.0)


def set_scale(pipe: Any, scale: float) -> None:
    """Multiplies the adapter's contribution, as it was trained, by `scale`."""
    for _, layer in _adapted_layers(pipe):
        layer.set_scale(ADAPTER, scale)


def squared_norm(pipe: Any) -> torch.Tensor:
    """Sum over layers of |scale B A|^2, the squared Frobenius norm of what the LoRA adds, with gradient, ().

    The product is never built: |B A|^2 = sum((B^T B) * (A A^T)).
    """
    norms = []
    for _, layer in _adapted_layers(pipe):
        down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
        norms.append(((up.T @ up) * (down @ down.T)).sum() * layer.scaling[ADAPTER] ** 2)
    return torch.stack(norms).sum()


def _adapted_layers(pipe: Any) -> Iterator[tuple[str, Any]]:
    for name, denoiser in find_denoisers(pipe).items():
        for layer in denoiser.modules():
            if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                yield name, layer


def _inject(denoiser: Any, config: LoraConfig) -> None:
    """Some of diffusers' models have no loader for adapters of their own; peft needs none."""
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config, adapter_name=ADAPTER)
    else:
        inject_adapter_in_model(config, denoiser, adapter_name=ADAPTER)


def lora_state(pipe: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights on the CPU, in peft's names behind the component's."""
    return {
        f"{name}.{key}": tensor.detach().cpu().clone()
        for name, denoiser in find_denoisers(pipe).items()
        for key, tensor in get_peft_model_state_dict(denoiser, adapter_name=ADAPTER).items()
    }


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
    for name, denoiser in find_denoisers(pipe).items():
        set_peft_model_state_dict(denoiser, _of_component(name, state), adapter_name=ADAPTER)


def _of_component(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}


def save_lora(pipe: Any, folder: Path) -> Path:
    """Writes the adapter so that plain diffusers' `pipe.load_lora_weights(folder)` loads it; returns the file.

    A second denoiser's has a file of its own, for `load_lora_weights(folder, weight_name=...,
    load_into_transformer_2=True)`. For a pipeline that has no loader it is the file that `load_lora` reads.
    """
    state = lora_state(pipe)
    (first, denoiser), *others = find_denoisers(pipe).items()
    _save(pipe, first, denoiser, _of_component(first, state), folder, WEIGHTS_FILE)
    for name, other in others:
        _save(pipe, first, other, _of_component(name, state), folder, _file_of(name))
    return folder / WEIGHTS_FILE


def _save(pipe: Any, name: str, denoiser: Any, state: dict[str, torch.Tensor], folder: Path, file: str) -> None:
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in denoiser.peft_config[ADAPTER].to_dict().items()
    }
    save = getattr(pipe, "save_lora_weights", None)
    if save is None:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", CONFIG_KEY: json.dumps(config)}
        save_file({f"{name}.{key}": tensor.contiguous() for key, tensor in state.items()}, folder / file, metadata)
        return
    arguments: dict[str, Any] = {f"{name}_lora_layers": state, "weight_name": file}
    if (metadata_name := f"{name}_lora_adapter_metadata") in inspect.signature(save).parameters:
        arguments[metadata_name] = config
    save(folder, safe_serialization=True, **arguments)


def _file_of(name: str) -> str:
    """Where the adapter of a second denoiser stands, beside WEIGHTS_FILE."""
    return f"pytorch_lora_weights_{name}.safetensors"


def load_lora(pipe: Any, folder: Path, *, scale: float = 1.0) -> None:
    """Loads a LoRA from a folder that `save_lora`, or any diffusers trainer, wrote, or from a run's folder.

    Arguments:
        scale: factor of the adapter's contribution; 0 is the base model, 1 what was trained.

    Raises:
        CheckpointError: if there is no LoRA in `folder`, or its file is damaged.
    """
    folder = lora_folder(folder)
    (first, _), *others = find_denoisers(pipe).items()
    _load(pipe, first, first, folder, WEIGHTS_FILE)
    for name, _ in others:
        if (folder / _file_of(name)).is_file():
            _load(pipe, first, name, folder, _file_of(name))
    set_scale(pipe, scale)


def lora_folder(path: Path) -> Path:
    """The folder of a LoRA that a path means: itself, or `lora` in the folder of a run.

    Raises:
        CheckpointError: if there is no LoRA.
    """
    for folder in (path, path / "lora"):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    raise CheckpointError(
        f"there is no {WEIGHTS_FILE}", where=str(path), next="give the folder of a run, or the lora folder in it"
    )


def loading_lines(folder: Path, shown: Path) -> list[str]:
    """Python lines that load the LoRA in `folder` into `pipe`.

    Arguments:
        shown: the folder as the lines name it.
    """
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as opened:
        if CONFIG_KEY in (opened.metadata() or {}):  # the pipeline has no loader of its own
            return [
                "from pathlib import Path",
                "from draft_core.lora import load_lora",
                f"load_lora(pipe, Path({str(shown)!r}))",
            ]
    prefix = _file_of("").removesuffix(".safetensors")
    others = {file.name: file.stem.removeprefix(prefix) for file in sorted(folder.glob(f"{prefix}*.safetensors"))}
    return [
        f"pipe.load_lora_weights({str(shown)!r})",
        *(
            f"pipe.load_lora_weights({str(shown)!r}, weight_name={file!r}, load_into_{name}=True)"
            for file, name in others.items()
        ),
    ]


def _load(pipe: Any, prefix: str, name: str, folder: Path, file: str) -> None:
    """One file into the denoiser `name`, its keys behind `prefix`, the name of the first one."""
    try:
        with safe_open(folder / file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"it is not a safetensors file ({error})", where=str(folder / file), next="copy it again"
        ) from error
    if hasattr(pipe, "load_lora_weights"):
        into = {} if name == prefix else {f"load_into_{name}": True}
        pipe.load_lora_weights(folder, weight_name=file, adapter_name=ADAPTER, **into)
        return
    if CONFIG_KEY not in metadata:
        raise CheckpointError(
            f"{type(pipe).__name__} has no loader for it", where=str(folder / file), next="give the lora of a run"
        )
    denoiser = getattr(pipe, name)
    config = json.loads(metadata[CONFIG_KEY])
    _inject(denoiser, LoraConfig(**{key: config[key] for key in ("r", "lora_alpha", "target_modules")}))
    set_peft_model_state_dict(denoiser, _of_component(prefix, load_file(folder / file)), adapter_name=ADAPTER)
