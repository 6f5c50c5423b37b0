"""From what was said to what happens: a recipe becomes a trainer, a kind a reward, a name a pipeline.

The hall: one of the few rooms that know both wings.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from packaging.version import Version

from draft_core import seams
from draft_core.catalog import Catalog, load_catalog
from draft_core.config import RewardConfig
from draft_core.encoding import remember_prompts
from draft_core.errors import DraftError, PluginError, RecipeError
from draft_core.lora import adapters_off, add_lora
from draft_core.objective import Elsewhere, Objective
from draft_core.reading import validate
from draft_core.recipe import ModelConfig, RecipeBase, locate_pretrained, resolve_prompts, reward_type
from draft_core.sampler import IMAGE_FILTERS, DifferentiableSampler
from draft_core.trainer import Trainer

# diffusers 0.40 renamed it, and warns of the old name.
DTYPE_KEYWORD = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"


def build(recipe: RecipeBase, *, catalog: Catalog | None = None) -> Trainer:
    """The trainer of a recipe: pipeline loaded, LoRA added, rewards built, everything on its device.

    Raises:
        DraftError: if the device, a package or a weight is missing; what costs nothing is checked first.
    """
    catalog = catalog if catalog is not None else load_catalog()
    _check_machine(recipe)
    prompts = resolve_prompts(recipe.prompts, catalog)
    objective = build_objective(recipe.rewards, catalog)
    sampler = build_sampler(recipe.model, seed=recipe.train.seed, catalog=catalog)
    if recipe.regularizers.kl:
        sampler.base_model = partial(adapters_off, sampler.pipe)
    return Trainer(
        sampler,
        objective,
        recipe.estimator,
        prompts,
        device=recipe.device,
        **recipe.train.model_dump(),
        **recipe.regularizers.model_dump(),
    )


def build_sampler(model: ModelConfig, *, seed: int, catalog: Catalog) -> DifferentiableSampler:
    """The sampler of a recipe's model, whose denoiser carries a fresh LoRA drawn from `seed`."""
    pipe = load_pipeline(model.pretrained, dtype=model.dtype, catalog=catalog)
    if model.tiled_decode:
        _tile_decode(pipe)
    if model.remember_prompts:
        remember_prompts(pipe)
    targets = {} if model.lora.targets is None else {"targets": model.lora.targets}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_lora(pipe, rank=model.lora.rank, alpha=model.lora.alpha, **targets)
    guidance = _guided(pipe, model.guidance_scale)
    return DifferentiableSampler(
        pipe,
        num_inference_steps=model.num_inference_steps,
        gradient_checkpointing=model.gradient_checkpointing,
        decode=model.decode,
        **guidance,
        **model.call,
    )


def build_objective(configs: Sequence[RewardConfig], catalog: Catalog, *, beside: Objective | None = None) -> Objective:
    """The weighted sum of these rewards; a kind that stands there twice gets a number behind its name.

    Arguments:
        beside: rewards that are built already, and come first: none is loaded twice.
    """
    rewards: dict[str, torch.nn.Module] = dict(beside.rewards.items()) if beside else {}
    weights: dict[str, float] = dict(beside.weights) if beside else {}
    caps: dict[str, float] = dict(beside.caps) if beside else {}
    for config in configs:
        count = sum(name.split("#")[0] == config.kind for name in rewards)
        name = f"{config.kind}#{count + 1}" if count else config.kind
        rewards[name] = build_reward(config, catalog)
        weights[name] = config.weight
        if config.cap is not None:
            caps[name] = config.cap
    return Objective(rewards, weights, caps)


def load_reward(kind: str, *, catalog: Catalog | None = None, **fields: Any) -> torch.nn.Module:
    """The reward of an installed kind: `load_reward("jpeg", quality=50)`.

    Arguments:
        kind: as `draft rewards` lists it.
        fields: of its config, as `draft rewards show KIND` lists them.

    Raises:
        PluginError: if no usable plugin offers it.
        RecipeError: if a field is unknown or has a wrong value.
    """
    catalog = catalog if catalog is not None else load_catalog()
    config = reward_config(kind, fields, catalog)
    return build_reward(config, catalog).requires_grad_(False).eval()


def build_reward(config: RewardConfig, catalog: Catalog) -> torch.nn.Module:
    """What the plugin's factory makes of its config.

    Raises:
        PluginError: if the factory raises anything but a `DraftError`, or makes no module.
    """
    entry = catalog.reward(config.kind)
    where = f"reward {config.kind!r} of {entry.distribution}"
    factory = entry.spec.load()
    try:
        reward = factory(config)
    except DraftError:
        raise
    except Exception as error:  # a plugin's bug: name the plugin, and keep the traceback as the cause
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"it cannot be built ({reason})", where=where, next="tell its author") from error
    if not isinstance(reward, torch.nn.Module):
        raise PluginError(f"its factory made {type(reward).__name__}, not a torch.nn.Module", where=where)
    if config.device is None:
        return reward
    _check_device(config.device, where=f"reward {config.kind!r}: device")
    return Elsewhere(reward, config.device)


def reward_config(kind: str, fields: Mapping[str, Any], catalog: Catalog) -> RewardConfig:
    """The validated config of an installed kind.

    Raises:
        DraftError: like `load_reward`.
    """
    catalog.reward(kind)
    config: RewardConfig = validate(reward_type(catalog), {"kind": kind, **fields}, catalog, where=f"reward {kind!r}")
    return config


def load_pipeline(name: str, *, dtype: str = "float32", catalog: Catalog | None = None) -> Any:
    """The diffusers pipeline behind an alias, a folder or a hub name, without what would cut the gradient.

    Arguments:
        dtype: name of the torch dtype of all its weights.

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


def _guided(pipe: Any, scale: float | None) -> dict[str, Any]:
    """What the call takes for this guidance; where guidance is a component instead, a new one of its class."""
    guiders = seams.guiders(pipe)
    if scale is None or "guidance_scale" in seams.call_inputs(pipe) or not guiders:
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


def _tile_decode(pipe: Any) -> None:
    enable = getattr(getattr(pipe, "vae", None), "enable_tiling", None)
    if enable is None:
        raise RecipeError(
            f"the decoder of {type(pipe).__name__} cannot work in tiles",
            where="model.tiled_decode",
            next="leave it out; `model.decode: sliced` saves memory too",
        )
    enable()


def _check_device(device: str, *, where: str) -> None:
    """That a device is here; a number behind cuda counts from 0."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu", *(["cuda", *(f"cuda:{card}" for card in range(cards))] if cards else [])]
    available += ["mps"] if torch.backends.mps.is_available() else []
    if device not in available:
        raise RecipeError(
            f"{device!r} is not available here", where=where, next=f"use {', '.join(available)}, or leave the field out"
        )


def _check_machine(recipe: RecipeBase) -> None:
    if recipe.device:
        _check_device(recipe.device, where="device")
    for place, reward in enumerate([*recipe.rewards, *recipe.measures]):
        if reward.device:
            name = f"rewards.{place}" if place < len(recipe.rewards) else f"measures.{place - len(recipe.rewards)}"
            _check_device(reward.device, where=f"{name}.device")
    if recipe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(
            "TensorBoard is not installed", where="tensorboard", next="pip install 'draft-core[tensorboard]'"
        )
