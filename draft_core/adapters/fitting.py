"""Whether a LoRA file fits the networks of a pipeline, and quiet for the libraries while they load it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from draft_core.errors import CheckpointError, first_line

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
LIBRARIES = ("diffusers", "transformers", "peft")
CLIP_PREFIX = "text_model."  # of the layers of CLIP's text encoder in files; transformers 5 leaves it out


@contextmanager
def loading(files: Mapping[Path, Mapping[str, torch.nn.Module]], *, into: str, where: str) -> Iterator[None]:
    """Whatever the libraries say of LoRA files inside becomes one sentence, and what they would leave out is refused.

    Arguments:
        files: each -> the component that its keys begin with -> that network.
        into: what they are loaded into, for the sentence.
        where: what they are together, for the sentence.

    Raises:
        CheckpointError: if layers of a file are not in these networks, or the libraries fail.
    """
    layers = {(file, layer): shape for file in files for layer, shape in _layers(file).items()}
    found = {(file, layer): _weight(files[file], layer) for file, layer in layers}
    if missing := [place for place, shape in found.items() if shape is None]:
        file, layer = missing[0]
        raise CheckpointError(
            f"{len(missing)} of the {len(layers)} layers that it adapts are not in {into}, first {layer}",
            where=str(file),
            next="give a LoRA of this model",
        )
    try:
        with hushed():
            yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # diffusers', peft's or torch's
        other = [layer for (file, layer), shape in layers.items() if found[file, layer] not in ((), shape)]
        reason = f"{len(other)} of its {len(layers)} layers have another shape, first {other[0]}" if other else None
        raise CheckpointError(
            f"it cannot be loaded into {into} ({reason or first_line(error)})",
            where=where,
            next="give a LoRA of this model, and copy it again if it is one",
        ) from error


def _layers(file: Path) -> dict[str, tuple[int, ...]]:
    """Layer behind its component's name -> (outputs, inputs, ...) that a plain LoRA file tells; of others nothing."""
    with safe_open(file, framework="pt") as opened:
        shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    names = [key.removesuffix(DOWN) for key in shapes if key.endswith(DOWN)]
    return {name: (*shapes[name + UP][:1], *shapes[name + DOWN][1:]) for name in names if name + UP in shapes}


def _weight(networks: Mapping[str, torch.nn.Module], layer: str) -> tuple[int, ...] | None:
    """The shape of a layer's weight, () where it or its network is not known here, None if there is no such layer."""
    component, _, inner = layer.partition(".")
    if component not in networks:
        return ()
    for name in (inner, CLIP_PREFIX + inner, inner.removeprefix(CLIP_PREFIX)):
        try:
            module = networks[component].get_submodule(name)
        except AttributeError:
            continue
        weight = getattr(getattr(module, "base_layer", module), "weight", None)
        return tuple(weight.shape) if isinstance(weight, torch.Tensor) else ()
    return None


@contextmanager
def hushed() -> Iterator[None]:
    """The libraries list every tensor that does not fit, before they raise."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
