"""An alias, a folder or a hub name becomes a diffusers pipeline."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from packaging.version import Version

from draft_core.errors import DraftError, RecipeError
from draft_core.recipe.resolve import locate_pretrained
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.rewards.hub import hub_or_cache
from draft_core.sampling import pipelines
from draft_core.sampling.sampler import IMAGE_FILTERS

# diffusers 0.40 renamed it, and warns of the old name.
DTYPE_KEYWORD = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


def load_pipeline(name: str, *, dtype: str = "float32", catalog: Catalog | None = None) -> Any:
    """The diffusers pipeline behind an alias, a folder or a hub name, without what would cut the gradient.

    Arguments:
        name: an alias of `catalog`, a local folder, or "owner/name" on the hub.
        dtype: name of the torch dtype of all its weights.
        catalog: None takes what is installed.

    Raises:
        RecipeError: if there is no such pipeline.
        DraftError: if it cannot be loaded, for want of a network, say.
    """
    catalog = catalog if catalog is not None else load_catalog()
    location = locate_pretrained(name, catalog)
    torch_dtype = getattr(torch, dtype)
    try:
        pipe = _from_pretrained(location, torch_dtype)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        known = "check the files in it" if Path(location).is_dir() else "check the name and the network"
        raise DraftError(
            f"{name} cannot be loaded ({first_line})", where="model.pretrained", next=f"{known}, or give a local folder"
        ) from error
    for component in pipe.components.values():
        # transformers loads in the precision that its config names, whatever the pipeline asked for
        if isinstance(component, torch.nn.Module) and getattr(component, "dtype", torch_dtype) != torch_dtype:
            component.to(torch_dtype)
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            setattr(pipe, attribute, None)
    return pipe


@hub_or_cache()
def _from_pretrained(location: str, dtype: torch.dtype) -> Any:
    """A classic pipeline, or a modular one where there is no classic."""
    folder = Path(location)
    if folder.is_dir():
        classic = (folder / "model_index.json").is_file()
        return _classic_pipeline(location, dtype) if classic else _modular_pipeline(location, dtype)
    try:
        return _classic_pipeline(location, dtype)
    except (OSError, ValueError) as error:
        try:
            return _modular_pipeline(location, dtype)
        except (OSError, ValueError):
            raise error from None


def _classic_pipeline(location: str, dtype: torch.dtype) -> Any:
    return DiffusionPipeline.from_pretrained(location, **{DTYPE_KEYWORD: dtype})


def _modular_pipeline(location: str, dtype: torch.dtype) -> Any:
    """Its index names the place of each component, for those of a local folder the one it was saved at: ours wins."""
    with warnings.catch_warnings():
        # an argument that diffusers hands on to huggingface_hub, which no longer knows it
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
        pipe = ModularPipeline.from_pretrained(location)
    here = {name: location for name in pipe.component_names if (Path(location) / name).is_dir()}
    pipe.load_components(pretrained_model_name_or_path=here, **{DTYPE_KEYWORD: dtype})
    if missing := sorted(name for name in here if getattr(pipe, name, None) is None):
        raise ValueError(f"its {', '.join(missing)} cannot be read")  # diffusers only warns
    return pipe


def guided(pipe: Any, scale: float | None) -> dict[str, Any]:
    """What the call takes for this guidance; where guidance is a component instead, a new one of its class."""
    guiders = pipelines.guiders(pipe)
    if scale is None or "guidance_scale" in pipelines.call_inputs(pipe) or not guiders:
        return {} if scale is None else {"guidance_scale": scale}
    for name, guider in guiders.items():
        if "guidance_scale" not in inspect.signature(type(guider)).parameters:
            raise RecipeError(
                f"the {type(guider).__name__} of {type(pipe).__name__} has no guidance_scale",
                where="model.guidance_scale",
                next="leave the field out",
            )
        pipe.update_components(**{name: type(guider).from_config(guider.config, guidance_scale=scale)})
    return {}


def tile_decode(pipe: Any) -> None:
    """Lets the decoder work in tiles, which takes less memory.

    Raises:
        RecipeError: if it cannot.
    """
    enable = getattr(getattr(pipe, "vae", None), "enable_tiling", None)
    if enable is None:
        raise RecipeError(
            f"the decoder of {type(pipe).__name__} cannot work in tiles",
            where="model.tiled_decode",
            next="leave it out; `model.decode: sliced` saves memory too",
        )
    enable()
