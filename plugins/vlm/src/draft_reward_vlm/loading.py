"""Loads a vision-language model with its processor, once for all rewards that name the same one."""

from __future__ import annotations

import re
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from draft_core import load_catalog
from draft_core.errors import DraftError
from draft_core.rewards.weights import PUBLISHED, explained, load_pretrained, locate_model
from draft_reward_vlm import DEFAULT_MODEL, ModelConfig
from draft_reward_vlm.tiny import tiny

_ALIAS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# What rewards of this process hold now; a model goes when the last of them does.
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], torch.nn.Module] = weakref.WeakValueDictionary()


def load_shared(config: ModelConfig, *, where: str) -> Any:
    """The model, frozen, with its processor as the attribute `processor`; the one that is loaded already if there is.

    Rewards share it if they name the same model, dtype, device, seed and gradient checkpointing: whatever moves the one
    would move the other.

    Arguments:
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if it is not there, or answers no questions about images.
    """
    key = (config.model, config.dtype, config.device, config.seed, config.gradient_checkpointing)
    if key not in _loaded:
        model = _load(config, where)
        if config.gradient_checkpointing:
            _recompute_layers(model, where)
        _loaded[key] = model.requires_grad_(False).eval()
        return model
    return _loaded[key]


def _load(config: ModelConfig, where: str) -> Any:
    dtype = getattr(torch, config.dtype)
    if config.model == "tiny":
        model, processor = tiny("llava", config.seed)
        model = model.to(dtype)
    else:
        name = _locate(config.model, where)
        _require_answers(name, where)
        with explained(f"the processor {name}", where=where, option="model", location=name):
            processor = AutoProcessor.from_pretrained(name)
        model = load_pretrained(AutoModelForImageTextToText, name, where=where, option="model", dtype=dtype)
    for settings in (model.config, model.config.get_text_config()):
        settings.use_cache = False  # no token is generated, so nothing is worth keeping
    model.processor = processor
    return model


def _locate(model: str, where: str) -> str:
    """A name on the hub, or the folder of a path or of a model that an installed distribution carries."""
    catalog = load_catalog()
    if model in catalog.critics:
        return str(catalog.critics[model].spec.folder)
    if _ALIAS.fullmatch(model) and not Path(model).is_dir():
        raise catalog.unknown("model", model, {*catalog.critics, "tiny"}, where=f"{where}, model")
    return locate_model(PUBLISHED if model == DEFAULT_MODEL else model, DEFAULT_MODEL, where=where, option="model")


def _require_answers(name: str, where: str) -> None:
    """Refuses a model of another task by its type, before its weights are fetched."""
    with explained(f"the config of {name}", where=where, option="model", location=name):
        config = AutoConfig.from_pretrained(name)
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not known or config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        what = "has no image-text-to-text class in transformers" if not known else "has an encoder for the question"
        raise DraftError(
            f"{name} is a {config.model_type!r}, which {what}",
            where=f"{where}, model",
            next="choose a model whose decoder reads image and question, such as Qwen2.5-VL, SmolVLM or LLaVA",
        )


def _recompute_layers(model: torch.nn.Module, where: str) -> None:
    """Lets each layer be computed again in the backward pass; transformers itself does so in training mode alone."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise DraftError(
            f"{type(model).__name__} has no layers that can be recomputed",
            where=f"{where}, gradient_checkpointing",
            next="set it to false",
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
