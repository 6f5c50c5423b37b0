"""Frozen weights in 4 or 8 bits: which networks are quantised while they are loaded, by which library."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.quantizers import PipelineQuantizationConfig

from draft_core.errors import RecipeError, first_line
from draft_core.recipe.quantization import WHERE, quantized_networks
from draft_core.recipe.resolve import is_single_file
from draft_core.rewards.hub import hub_or_cache
from draft_core.runs.loading.classes import index_in

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao"}  # kind -> what computes with it
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}  # each has its own class for a config
NEEDS_GPU = ("nf4",)  # diffusers refuses it elsewhere
ELSE = "leave model.quantization out"


def check_quantization(
    quantization: str | Mapping[str, str], location: str, *, has_lora: bool, has_users: bool = False
) -> None:
    """What can be known of it before anything is loaded.

    Arguments:
        quantization: as in a recipe's model.
        location: folder, file or hub name of the model.
        has_lora: whether an alias adds a LoRA to the weights.
        has_users: whether attention to users is trained.

    Raises:
        RecipeError: if a package or a GPU is missing, or it does not go together with the model.
    """
    _require_known(_kinds(quantization))
    if has_users:
        raise RecipeError("users are trained over weights of single precision", where=WHERE, next=ELSE)
    if is_single_file(location):
        raise RecipeError(
            "a single file is not quantised while it is loaded", where=WHERE, next="give a folder in diffusers' format"
        )
    if has_lora:
        raise RecipeError(
            "the alias adds a LoRA to its weights, which quantised ones do not take", where=WHERE, next=ELSE
        )
    if Path(location).is_dir():
        _chosen(quantization, _index_of(location))
    elif not isinstance(quantization, str):
        quantized_networks(quantization, quantization)  # what another model has is not known yet
    require_libraries(_kinds(quantization))


def check_machine(quantization: str | Mapping[str, str] | None, device: torch.device) -> None:
    """That a run can have quantised weights on this device.

    Raises:
        RecipeError: if it cannot.
    """
    if quantization is None:
        return
    for kind in {*_kinds(quantization)}.intersection(NEEDS_GPU):
        if device.type != "cuda":
            raise RecipeError(
                f"{kind} is not computed on {device.type}", where=WHERE, next="use int8, or run on a GPU of CUDA"
            )


def require_libraries(kinds: Iterable[str]) -> None:
    """That what quantises is installed, and finds the GPU that it needs.

    Raises:
        RecipeError: naming the package, or the GPU.
    """
    for kind in dict.fromkeys(kinds):
        if importlib.util.find_spec(PACKAGES[kind]) is None:
            raise RecipeError(
                f"{kind} needs {PACKAGES[kind]}, which is not installed",
                where=WHERE,
                next="pip install 'draft-core[quantization]'",
            )
        if kind in NEEDS_GPU and not torch.cuda.is_available():
            raise RecipeError(
                f"diffusers loads {kind} on a GPU alone, and there is none of CUDA",
                where=WHERE,
                next=f"use int8, which the CPU computes too, or {ELSE}",
            )


def _require_known(kinds: Iterable[str]) -> None:
    for kind in kinds:
        if kind not in PACKAGES:
            raise RecipeError(f"{kind!r} is no quantization", where=WHERE, next=f"give {' or '.join(PACKAGES)}")


def packages_of(quantization: str | Mapping[str, str]) -> list[str]:
    """The distributions that compute with quantised weights, those of them that are installed."""
    found = {PACKAGES[kind] for kind in _kinds(quantization)}
    return sorted(package for package in found if importlib.util.find_spec(package) is not None)


def pipeline_config(
    quantization: str | Mapping[str, str], location: str, dtype: torch.dtype, *, revision: str | None = None
) -> Any:
    """What `from_pretrained` of a pipeline takes as `quantization_config`; only the index of the model is read.

    Arguments:
        quantization: as in a recipe's model.
        location: folder or hub name of a classic pipeline.
        dtype: in which the quantised layers compute.

    Raises:
        RecipeError: if the model has no such network, or this diffusers cannot do it.
    """
    if Path(location).is_dir():
        index = _index_of(location)
    else:
        with hub_or_cache():  # as the weights after it
            index = dict(DiffusionPipeline.load_config(location, revision=revision))
    chosen = _chosen(quantization, index)
    try:
        mapping = {name: _config(kind, LIBRARIES[index[name][0]], dtype) for name, kind in chosen.items()}
        return PipelineQuantizationConfig(quant_mapping=mapping)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise RecipeError(
            f"diffusers {diffusers.__version__} and transformers {transformers.__version__} cannot quantise so "
            f"({first_line(error)})",
            where=WHERE,
            next=f"install newer ones and the packages of draft-core[quantization], or {ELSE}",
        ) from error


def _chosen(quantization: str | Mapping[str, str], index: Mapping[str, Any]) -> dict[str, str]:
    """Component -> its kind, of those in an index such as model_index.json."""
    homes = {name: part[0] for name, part in index.items() if isinstance(part, (list, tuple)) and part and part[0]}
    chosen = quantized_networks(quantization, homes)
    for name in chosen:
        if homes[name] not in LIBRARIES:
            raise RecipeError(f"its {name} is a class of {homes[name]}, which none quantises", where=WHERE, next=ELSE)
    return chosen


def _kinds(quantization: str | Mapping[str, str]) -> list[str]:
    return [quantization] if isinstance(quantization, str) else [*quantization.values()]


def _index_of(folder: str) -> dict[str, Any]:
    """The index in a folder of a classic pipeline."""
    if (index := index_in(folder)) is None:
        raise RecipeError(
            f"{folder} has no model_index.json, as a modular pipeline has none, and its networks are not quantised",
            where=WHERE,
            next=ELSE,
        )
    return index


def _config(kind: str, library: Any, dtype: torch.dtype) -> Any:
    """What the library calls it. Scales of nf4 are float32, one for 64 weights; those of int8 one for a row."""
    if kind == "nf4":
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig())
