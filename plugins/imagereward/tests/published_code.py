"""The networks of the package `image-reward`, module by module: as a whole it does not import under transformers 5."""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
import transformers.pytorch_utils
from draft_reward_imagereward.blip import SIDE, VOCABULARY
from draft_reward_imagereward.tiny import character_tokenizer

PACKAGE, VERSION = "image-reward", "1.5"


def package_model(sizes: dict[str, dict[str, Any]], settings: Path, patch: pytest.MonkeyPatch) -> Any:
    """The package's own ImageReward with networks of these sizes; the test is skipped where the package is missing.

    Arguments:
        sizes: as `draft_reward_imagereward.blip.TINY`.
        settings: where the file of settings is written that it reads.
        patch: undoes what was changed for it in libraries.
    """
    blip, transformer, whole = _modules(patch)
    vision, text = sizes["vision"], sizes["text"]
    eyes = transformer.VisionTransformer(
        img_size=SIDE,
        patch_size=vision["patch_size"],
        embed_dim=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        drop_path_rate=0.1,
    )
    patch.setattr(blip, "create_vit", lambda *_: (eyes, vision["hidden_size"]))
    patch.setattr(blip, "init_tokenizer", character_tokenizer)
    settings.write_text(json.dumps(_med_config(text)))
    model = whole.ImageReward(str(settings))
    model.mlp = whole.MLP(text["hidden_size"])  # the package fixes 768
    return model.eval()


def _med_config(text: dict[str, Any]) -> dict[str, Any]:
    """What BLIP publishes as med_config.json, in other sizes."""
    sizes = {name: value for name, value in text.items() if name != "initializer_range"}
    return {"vocab_size": VOCABULARY, "layer_norm_eps": 1e-12, "add_cross_attention": True, **sizes}


def _modules(patch: pytest.MonkeyPatch) -> list[Any]:
    """Three of its modules, while what they import from older libraries stands in today's."""
    try:
        folder = Path(str(metadata.distribution(PACKAGE).locate_file("ImageReward")))
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is missing: pip install --no-deps {PACKAGE}=={VERSION}")
    for name in ("ImageReward", "ImageReward.models", "ImageReward.models.BLIP"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]  # its own __init__ imports too much
        patch.setitem(sys.modules, name, package)
    checkpoints = types.ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    checkpoints.checkpoint_wrapper = None  # called for nothing that is compared
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        patch.setitem(sys.modules, name, types.ModuleType(name))
    patch.setitem(sys.modules, checkpoints.__name__, checkpoints)
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
        found = getattr(transformers.pytorch_utils, name, None)  # version 5 has moved two, and dropped the first
        patch.setattr(transformers.modeling_utils, name, found, raising=False)
    for name, method in (("get_head_mask", _no_head_mask), ("invert_attention_mask", _inverted)):
        patch.setattr(transformers.PreTrainedModel, name, method, raising=False)
    patch.setattr(transformers.PreTrainedModel, "init_weights", lambda self: None)  # they are replaced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, on the old names of its modules
        names = ("models.BLIP.blip_pretrain", "models.BLIP.vit", "ImageReward")
        found = [importlib.import_module(f"ImageReward.{name}") for name in names]
    for name in [name for name in sys.modules if name.startswith("ImageReward.")]:
        patch.setitem(sys.modules, name, sys.modules[name])  # so that it is forgotten with the others
    return found


def _no_head_mask(self: Any, mask: None, layers: int) -> list[None]:
    """transformers 4's answer where no mask of heads is given."""
    return [None] * layers


def _inverted(self: Any, mask: torch.Tensor) -> torch.Tensor:
    """transformers 4's mask to be added, of a mask (B, S) of ones and zeros."""
    return (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
