"""LoRAs as files that diffusers loads."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from draft_core.adapters.fitting import loading
from draft_core.adapters.lora import ADAPTER, inject, is_adapted, lora_state, of_component, set_scale
from draft_core.errors import CheckpointError, require_finite
from draft_core.sampling.pipelines import find_denoisers

CONFIG_KEY = "lora_config"  # of the metadata, where a pipeline has no loader of its own
CONFIG_FIELDS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")  # read from it
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for


def save_lora(pipe: Any, folder: Path) -> Path:
    """Writes the adapter so that plain diffusers' `pipe.load_lora_weights(folder)` loads it; returns the file.

    A second denoiser's has a file of its own, for `load_lora_weights(folder, weight_name=...,
    load_into_transformer_2=True)`. For a pipeline that has no loader it is the file that `load_lora` reads.
    """
    state = lora_state(pipe)
    (first, denoiser), *others = find_denoisers(pipe).items()
    _save(pipe, first, denoiser, of_component(first, state), folder, WEIGHTS_FILE)
    for name, other in others:
        _save(pipe, first, other, of_component(name, state), folder, _file_of(name))
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


def load_lora(pipe: Any, path: Path, *, scale: float = 1.0) -> None:
    """Loads a LoRA that `save_lora`, or any trainer that diffusers knows, wrote.

    Arguments:
        path: of a file, of the folder of a LoRA, or of a run.
        scale: factor of the adapter's contribution; 0 is the base model, 1 what was trained.

    Raises:
        CheckpointError: if there is no LoRA at `path`, its file is damaged, or it is one of another model.
        DraftError: if `scale` is not a finite number.
    """
    require_finite(scale, where="scale")
    files = lora_files(path)
    (first, _), *others = find_denoisers(pipe).items()
    expected = {WEIGHTS_FILE: first, **{_file_of(name): name for name, _ in others}}
    if len(files) == 1 and path.name in expected:
        files = {path.name: path}
    for file, name in expected.items():
        if file in files:
            _load(pipe, first, name, files[file])
    if not is_adapted(pipe):
        raise CheckpointError(
            f"it adapts no layer of {type(pipe).__name__}", where=str(path), next="give a LoRA of this model"
        )
    set_scale(pipe, scale)


def lora_files(path: Path) -> dict[str, Path]:
    """The files of the LoRA at `path`, a file itself, its folder or that of a run, by the name diffusers gives them.

    Raises:
        CheckpointError: if there is no LoRA.
    """
    if path.is_file():
        return {WEIGHTS_FILE: path}
    prefix = _file_of("").removesuffix("_.safetensors")
    return {file.name: file for file in sorted(lora_folder(path).glob(f"{prefix}*.safetensors"))}


def lora_folder(path: Path) -> Path:
    """The folder of a LoRA that a path means: itself, or `lora` in the folder of a run.

    Raises:
        CheckpointError: if there is no LoRA.
    """
    for folder in (path, path / "lora"):
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    raise CheckpointError(
        f"there is no {WEIGHTS_FILE}",
        where=str(path),
        next="give the folder of a run, the lora folder in it, or a .safetensors file",
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
                "from draft_core.adapters.files import load_lora",
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


def _load(pipe: Any, prefix: str, name: str, file: Path) -> None:
    """One file into the denoiser `name`, its keys behind `prefix`, the name of the first one."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"it is not a safetensors file ({error})",
            where=str(file),
            next="give the .safetensors file of a LoRA, and copy it again if it is one",
        ) from error
    components = {key: part for key, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    networks = {**components, prefix: getattr(pipe, name)}
    with loading(file, networks, into=type(pipe).__name__):
        if hasattr(pipe, "load_lora_weights"):
            into = {} if name == prefix else {f"load_into_{name}": True}
            pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=ADAPTER, **into)
            return
        if CONFIG_KEY not in metadata:
            raise CheckpointError(
                f"{type(pipe).__name__} has no loader for it", where=str(file), next="give the lora of a run"
            )
        denoiser = networks[prefix]
        config = json.loads(metadata[CONFIG_KEY])
        inject(denoiser, LoraConfig(**{key: config[key] for key in CONFIG_FIELDS if key in config}))
        set_peft_model_state_dict(denoiser, of_component(prefix, load_file(file)), adapter_name=ADAPTER)
