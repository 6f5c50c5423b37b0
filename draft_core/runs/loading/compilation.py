"""Regional compilation: the repeated blocks of a denoiser by torch.compile, through diffusers' own function."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
from typing import Any

import diffusers
import torch

from draft_core.errors import RecipeError, first_line
from draft_core.recipe.quantization import DENOISERS
from draft_core.recipe.schema import ModelConfig
from draft_core.runs.loading.classes import index_in
from draft_core.sampling.pipelines import find_denoisers
from draft_core.setting import IN_PARTS

WHERE = "model.compile"
BACKEND = "inductor"
COMPILERS = ("g++", "clang++", "c++", "cl")  # of C++, one of which inductor needs on a CPU
# A graph of a block for each of: with or without a gradient, with the LoRA, without it or with a part of it, and sizes
# of batches. Beyond torch's own limit of 8 further ones would compute as they are written.
GRAPHS = 64


def check_compilation(model: ModelConfig, location: str) -> None:
    """That a model's blocks can be compiled, as far as its settings and its files say.

    Arguments:
        location: folder, file or hub name of the model.

    Raises:
        RecipeError: if they cannot.
    """
    if model.compile == "none":
        return
    beside = {
        f"gradient_checkpointing: {model.gradient_checkpointing}": model.gradient_checkpointing
        in ("selective", *IN_PARTS),
        "quantization": model.quantization is not None,
        "users": model.users is not None,
    }
    if named := [name for name, is_said in beside.items() if is_said]:
        raise RecipeError(
            f"compiled blocks do not go together with model.{named[0]}", where=WHERE, next="leave one of them out"
        )
    for name, part in (index_in(location) or {}).items():
        if isinstance(part, list) and part[:1] == ["diffusers"] and any(word in name for word in DENOISERS):
            cls = getattr(diffusers, str(part[-1]), None)
            if cls is not None:
                _require_blocks(cls)


def check_compiler(device: torch.device) -> None:
    """That there is what compiles for a device.

    Raises:
        RecipeError: if not.
    """
    if device.type == "cpu" and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), *COMPILERS)))):
        problem, advice = "there is no C++ compiler, which it needs on a CPU", "install g++, or leave it out"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        problem, advice = "it needs triton, which is not installed", "pip install triton, or leave it out"
    elif device.type not in ("cpu", "cuda"):
        problem, advice = f"it is not made for {device.type}", "leave it out"
    else:
        return
    raise RecipeError(problem, where=WHERE, next=advice)


def compile_denoisers(pipe: Any) -> None:
    """Lets the repeated blocks of each denoiser be compiled at their first calls.

    Raises:
        RecipeError: if a denoiser has none.
    """
    # A gradient of each reward is taken by several backward passes through one graph, and a compiled one would
    # otherwise write into the tensors that it has kept.
    torch._functorch.config.donated_buffer = False
    more = {"recompile_limit": GRAPHS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
    for denoiser in find_denoisers(pipe).values():
        _require_blocks(type(denoiser))
        try:
            denoiser.compile_repeated_blocks(backend=BACKEND, **more)
        except ValueError as error:  # its configuration has no such block
            raise _refusal(type(denoiser), f" ({first_line(error)})") from error


def _require_blocks(cls: Any) -> None:
    if not getattr(cls, "_repeated_blocks", None):
        raise _refusal(cls, ", as diffusers names none")


def _refusal(cls: Any, why: str) -> RecipeError:
    return RecipeError(f"{cls.__name__} has no repeated blocks to compile{why}", where=WHERE, next="leave it out")
