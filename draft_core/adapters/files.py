"""LoRAs as files that diffusers loads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from draft_core.adapters.fitting import loading
from draft_core.adapters.lora import ADAPTER, inject, is_adapted, lora_state, of_component, set_scale
from draft_core.errors import CheckpointError, require_finite
from draft_core.sampling.pipelines import find_denoisers, networks

CONFIG_KEY = "lora_config"  # of the metadata, where a pipeline has no loader of its own
CONFIG_FIELDS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")  # read from it
IP_ADAPTER_FILE = "ip_adapter.safetensors"  # of a run that trained attention to users, in the place of a LoRA
USERS_FILE = "users.safetensors"  # beside it: their embeddings
WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for


def write_lora(
    pipe: Any, folder: Path, *, state: dict[str, torch.Tensor] | None = None, own_format: bool = False
) -> Path:
    """Writes the adapter so that plain diffusers' `pipe.load_lora_weights(folder)` loads it; returns the file.

    A second denoiser's has a file of its own, for `load_lora_weights(folder, weight_name=...,
    load_into_transformer_2=True)`.

    Arguments:
        state: the weights to write; None takes those of `lora_state`.
        own_format: writes files that `load_lora` alone reads, as for every pipeline that has no loader.
    """
    state = lora_state(pipe) if state is None else state
    own_format = own_format or not hasattr(pipe, "save_lora_weights")
    (first, denoiser), *others = find_denoisers(pipe).items()
    _save(pipe, first, denoiser, of_component(first, state), folder, WEIGHTS_FILE, own_format)
    for name, other in others:
        _save(pipe, first, other, of_component(name, state), folder, _file_of(name), own_format)
    return folder / WEIGHTS_FILE


def _save(
    pipe: Any, name: str, denoiser: Any, state: dict[str, torch.Tensor], folder: Path, file: str, own_format: bool
) -> None:
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in denoiser.peft_config[ADAPTER].to_dict().items()
    }
    if own_format:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "pt", CONFIG_KEY: json.dumps(config)}
        save_file({f"{name}.{key}": tensor.contiguous() for key, tensor in state.items()}, folder / file, metadata)
        return
    save = pipe.save_lora_weights
    arguments: dict[str, Any] = {f"{name}_lora_layers": state, "weight_name": file}
    if (metadata_name := f"{name}_lora_adapter_metadata") in inspect.signature(save).parameters:
        arguments[metadata_name] = config
    save(folder, safe_serialization=True, **arguments)


def _file_of(name: str) -> str:
    """Where the adapter of a second denoiser stands, beside WEIGHTS_FILE."""
    return f"pytorch_lora_weights_{name}.safetensors"


def load_lora(pipe: Any, path: str | Path, *, scale: float = 1.0) -> None:
    """Loads a LoRA that `save_lora`, or any trainer that diffusers knows, wrote.

    Arguments:
        pipe: a diffusers pipeline of the model that the LoRA was made for.
        path: of a file, of the folder of a LoRA, or of a run.
        scale: factor of the adapter's contribution; 0 is the base model, 1 what was trained.

    Raises:
        CheckpointError: if there is no LoRA at `path`, its file is damaged, or it is one of another model.
        DraftError: if `scale` is not a finite number.
    """
    require_finite(scale, where="scale")
    path = Path(path)
    parts = networks(pipe)
    (first, _), *_ = find_denoisers(pipe).items()
    files = files_by_denoiser(pipe, path)
    adapted = {file: {**parts, first: parts[name]} for name, file in files.items()}
    with loading(adapted, into=type(pipe).__name__, where=str(path)):
        load_files(pipe, files, ADAPTER)
    if not is_adapted(pipe):
        raise CheckpointError(
            f"it adapts no layer of {type(pipe).__name__}", where=str(path), next="give a LoRA of this model"
        )
    set_scale(pipe, scale)


def load_files(pipe: Any, files: Mapping[str, Path], adapter: str) -> None:
    """Loads what `files_by_denoiser` found, as an adapter of this name."""
    (first, _), *_ = find_denoisers(pipe).items()
    for name, file in files.items():
        _load(pipe, first, name, file, adapter)


def files_by_denoiser(pipe: Any, path: Path) -> dict[str, Path]:
    """Denoiser -> file of its LoRA; a single file is the first one's, unless its name says another."""
    files = lora_files(path)
    (first, _), *others = find_denoisers(pipe).items()
    known = {first: WEIGHTS_FILE, **{name: _file_of(name) for name, _ in others}}
    if path.is_file() and path.name in known.values():
        files = {path.name: path}
    return {name: files[file] for name, file in known.items() if file in files}


def lora_files(path: Path) -> dict[str, Path]:
    """The files of the LoRA at `path`, a file itself, its folder or that of a run, by the name diffusers gives them.

    Raises:
        CheckpointError: if there is no LoRA, or a file is damaged.
    """
    if path.is_file():
        files = {WEIGHTS_FILE: path}
    else:
        prefix = WEIGHTS_FILE.removesuffix(".safetensors")
        files = {file.name: file for file in sorted(lora_folder(path).glob(f"{prefix}*.safetensors"))}
    for file in files.values():
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"it is not a safetensors file ({error})",
                where=str(file),
                next="give the .safetensors file of a LoRA, and copy it again if it is one",
            ) from error
    return files


def lora_folder(path: Path, *others: str) -> Path:
    """The folder of a LoRA that a path means: itself, or `lora` in the folder of a run.

    Arguments:
        others: names of files that do as well as a LoRA's.

    Raises:
        CheckpointError: if there is no LoRA.
    """
    for folder in (path, path / "lora"):
        if any((folder / name).is_file() for name in (WEIGHTS_FILE, *others)):
            return folder
    raise CheckpointError(
        f"there is no {WEIGHTS_FILE}",
        where=str(path),
        next="give the folder of a run, the lora folder in it, or a .safetensors file",
    )


def users_folder(path: Path) -> Path | None:
    """The folder of what a run trained on users, itself or `lora` in the folder of the run; None where it is none."""
    return next((folder for folder in (path, path / "lora") if (folder / IP_ADAPTER_FILE).is_file()), None)


def run_around(path: Path, *names: str) -> Path | None:
    """The folder of the run that the LoRA at `path` lies in, known by the files it holds; None where there is none.

    Arguments:
        path: of the run's folder itself, of the LoRA's folder in it, or of a file in that.
        names: of the files.
    """
    folders = (path, *path.absolute().parents[:2])
    return next((folder for folder in folders if all((folder / name).is_file() for name in names)), None)


def loading_lines(folder: Path, shown: Path) -> list[str]:
    """Python lines that load the LoRA in `folder` into `pipe`.

    Arguments:
        shown: the folder as the lines name it.
    """
    if (folder / IP_ADAPTER_FILE).is_file():
        with safe_open(folder / USERS_FILE, framework="pt") as opened:
            first = min(opened.keys())
        return [
            "from safetensors.torch import load_file",
            f'pipe.load_ip_adapter({str(shown)!r}, subfolder="", weight_name={IP_ADAPTER_FILE!r}, '
            "image_encoder_folder=None)",
            f"user = load_file({str(shown / USERS_FILE)!r})[{first!r}][None, None]",
            "users = [torch.cat([0 * user, user])]  # with a guidance_scale above 1; else [user]",
        ]
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as opened:
        if CONFIG_KEY in (opened.metadata() or {}):  # the pipeline has no loader of its own
            return [
                "from draft_core import load_lora",
                f"load_lora(pipe, {str(shown)!r})",
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


def _load(pipe: Any, prefix: str, name: str, file: Path, adapter: str) -> None:
    """One file into the denoiser `name`, its keys behind `prefix`, the name of the first one."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
    if CONFIG_KEY in metadata:
        denoiser = getattr(pipe, name)
        config = json.loads(metadata[CONFIG_KEY])
        inject(denoiser, LoraConfig(**{key: config[key] for key in CONFIG_FIELDS if key in config}), adapter)
        state = of_component(prefix, load_file(file))
        if _shapes(state) != _shapes(get_peft_model_state_dict(denoiser, adapter_name=adapter)):
            raise CheckpointError(
                f"it is of another model than this {type(pipe).__name__}", where=str(file), next="give its own"
            )
        set_peft_model_state_dict(denoiser, state, adapter_name=adapter)
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise CheckpointError(
            f"{type(pipe).__name__} has no loader for it", where=str(file), next="give the lora of a run"
        )
    into = {} if name == prefix else {f"load_into_{name}": True}
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=adapter, **into)


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
