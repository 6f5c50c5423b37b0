"""An alias, a folder, a hub name or a file becomes a diffusers pipeline, set up as a recipe says."""

from __future__ import annotations

import importlib
import inspect
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from packaging.version import Version
from safetensors import SafetensorError

from draft_core.adapters.files import load_lora, lora_files
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.adapters.users import check_users
from draft_core.errors import DraftError, RecipeError, first_line
from draft_core.prompt_rows import type_of_argument
from draft_core.recipe.columns import images_of, readers
from draft_core.recipe.resolve import is_single_file, locate_pretrained, resolve_evaluation
from draft_core.recipe.schema import ImageFile, LoraConfig, ModelConfig, RecipeBase
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.rewards.columns import check_images_of
from draft_core.rewards.hub import hub_or_cache
from draft_core.rewards.images import read_image, to_pil
from draft_core.runs.loading.classes import class_named_in, pipeline_class, scheduler_class
from draft_core.runs.loading.compilation import check_compilation
from draft_core.runs.loading.quantization import check_quantization, pipeline_config
from draft_core.runs.loading.tiles import check_tile_sizes
from draft_core.sampling import pipelines
from draft_core.sampling.pipelines import IMAGE_FILTERS

# diffusers 0.40 renamed it, and warns of the old name.
DTYPE_KEYWORD = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"

# Loaders change for the whole process where modules are made: of two threads at once one may get no weights.
LOADING = threading.Lock()


def load_pipeline(
    name: str,
    *,
    dtype: str = "float32",
    pipeline: str | None = None,
    config: str | None = None,
    variant: str | None = None,
    quantization: str | Mapping[str, str] | None = None,
    catalog: Catalog | None = None,
) -> Any:
    """The diffusers pipeline of an alias, a folder, a hub name or a file, without what would cut the gradient.

    Arguments:
        name: an alias of `catalog`, a local folder, "owner/name" on the hub, or a .safetensors file with all weights.
        dtype: name of the torch dtype of all its weights.
        pipeline: class in diffusers; None takes the one that the model names, which a single file does not.
        config: of a single file: a folder in diffusers' format or a hub name that says how the model is built; None
            takes the one that diffusers knows for weights of this kind.
        variant: of the weight files, such as "fp16".
        quantization: "nf4" or "int8" for the denoiser's frozen weights, or a component's name -> one of them; by
            bitsandbytes or torchao, while they are loaded.
        catalog: None takes what is installed.

    Raises:
        RecipeError: if there is no such pipeline, a package or a GPU is missing, or the arguments do not go together.
        DraftError: if it cannot be loaded, for want of a network, say.
    """
    catalog = catalog if catalog is not None else load_catalog()
    location = locate_pretrained(name, catalog)
    _check_source(location, pipeline, config, variant)
    cls = DiffusionPipeline if pipeline is None else pipeline_class(pipeline)
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(torch_dtype, torch.dtype):
        raise RecipeError(
            f"{dtype!r} names no dtype of torch", where="model.dtype", next="give 'float32', 'bfloat16' or 'float16'"
        )
    for module in catalog.pretrained[name].spec.modules if name in catalog.pretrained else ():
        importlib.import_module(module)
    lora = _added_lora(name, catalog)
    if quantization is not None:
        check_quantization(quantization, location, has_lora=lora is not None)
    revision, quantized = _revision(name, catalog), None
    try:
        with LOADING:
            if is_single_file(location):
                more = {} if config is None else {"config": config}
                with hub_or_cache(config):  # which says how it is built
                    pipe = cls.from_single_file(location, **more, **{DTYPE_KEYWORD: torch_dtype})
            else:
                if quantization is not None:
                    quantized = pipeline_config(quantization, location, torch_dtype, revision=revision)
                pipe = _from_pretrained(cls, location, torch_dtype, variant, revision, quantized)
    except _LOADING_ERRORS as error:
        known = "check the files in it" if Path(location).exists() else "check the name and the network"
        raise DraftError(
            f"{name} cannot be loaded ({first_line(error)})",
            where="model.pretrained",
            next=f"{known}, or give a local folder",
        ) from error
    for component, network in pipelines.networks(pipe).items():
        # transformers loads in the precision that its config names, whatever the pipeline asked for
        is_quantized = quantized is not None and component in quantized.quant_mapping
        if getattr(network, "dtype", torch_dtype) != torch_dtype and not is_quantized:
            network.to(torch_dtype)
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            setattr(pipe, attribute, None)
    if lora is not None:
        _add(pipe, lora)
    return pipe


def _add(pipe: Any, lora: Path) -> None:
    """Adds to the weights what the LoRA of an alias adds to them, and leaves no adapter behind."""
    load_lora(pipe, lora)
    pipe.fuse_lora()
    pipe.unload_lora_weights()


# A file that is not what it seems makes diffusers stumble over the keys and shapes that it expects.
_LOADING_ERRORS = (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError, SingleFileComponentError)


def check_model(model: ModelConfig, catalog: Catalog, *, evaluated_guidance: float | None = None) -> None:
    """What can be known of a model's settings before it is loaded.

    Arguments:
        evaluated_guidance: the evaluations' own, if they have one.

    Raises:
        RecipeError: if they do not go together, or diffusers has no such class.
        CheckpointError: if there is no LoRA to go on from.
    """
    location = locate_pretrained(model.pretrained, catalog)
    _check_source(location, model.pipeline, model.config, model.variant)
    cls = class_named_in(location) if model.pipeline is None else pipeline_class(model.pipeline)
    guidances = {"model.guidance_scale": model.guidance_scale, "evaluation.guidance_scale": evaluated_guidance}
    for where, guidance in guidances.items() if cls is not None else ():
        if guidance is not None and "guidance_scale" not in pipelines.call_inputs_of(cls):
            raise RecipeError(f"the call of {cls.__name__} takes no guidance_scale", where=where, next="leave it out")
    takes = [] if cls is None else pipelines.call_inputs_of(cls)
    if cls is not None and (unknown := [name for name in model.columns if name not in takes]):
        images = [name for name in takes if type_of_argument(name)]
        raise RecipeError(
            f"the call of {cls.__name__} takes no {unknown[0]}",
            where=f"model.columns.{unknown[0]}",
            next=f"of texts and images it takes {', '.join(images)}" if images else "leave it out",
        )
    if model.scheduler is not None:
        scheduler_class(model.scheduler)
    check_compilation(model, location)
    if model.quantization is not None:
        has_lora = _added_lora(model.pretrained, catalog) is not None
        check_quantization(model.quantization, location, has_lora=has_lora, has_users=model.users is not None)
    check_tile_sizes(model.tiled_decode, location)
    if model.users is not None:
        check_users(cls, model.dtype, has_lora=model.lora != LoraConfig())
    if model.lora.init is not None:
        lora_files(model.lora.init)


def check_files(recipe: RecipeBase, trained: Sequence[str], catalog: Catalog) -> None:
    """That the prompts' users are known, and their images readable and of one size where they share a call.

    Raises:
        DraftError: naming the first that does not.
    """
    found, (_, evaluated) = readers(recipe, catalog), resolve_evaluation(recipe, catalog)
    if (users := recipe.model.users) is not None:
        UserEmbeddings.read(users.file).check({"prompts": trained, "evaluation.prompts": evaluated}, users.column)
    shares_calls = recipe.train.batch_size > recipe.train.images_per_prompt
    of_calls = set(recipe.model.columns.values()) if shares_calls else set()
    check_images_of(dict(images_of(trained, found)), of_one_size=of_calls, where="prompts")
    check_images_of(dict(images_of(evaluated, found)), of_one_size=(), where="evaluation.prompts")


def _check_source(location: str, pipeline: str | None, config: str | None, variant: str | None) -> None:
    is_file = is_single_file(location)
    if is_file and pipeline is None:
        raise RecipeError(
            f"{location} is a single file, which does not say what pipeline it is of",
            where="model.pipeline",
            next="name its class in diffusers, such as StableDiffusionXLPipeline",
        )
    if is_file and variant is not None:
        raise RecipeError("a single file has no variants", where="model.variant", next="leave it out")
    if not is_file and config is not None:
        raise RecipeError(f"{location} says itself how it is built", where="model.config", next="leave it out")


def read_images(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe's call, the images in it read.

    Raises:
        DraftError: if a file is no image.
    """

    def read(value: Any) -> Any:
        if isinstance(value, ImageFile):
            return to_pil(read_image(value.file)[0])
        return [read(item) for item in value] if isinstance(value, list) else value

    return {name: read(value) for name, value in call.items()}


def with_tuples(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, lists as tuples where the pipeline's signature asks for those: YAML has lists alone."""
    wanted = pipelines.tuple_inputs(pipe)
    return {name: tuple(value) if isinstance(value, list) and name in wanted else value for name, value in call.items()}


def _revision(name: str, catalog: Catalog) -> str | None:
    """Of the hub repository that an alias names."""
    return catalog.pretrained[name].spec.revision if name in catalog.pretrained else None


def _added_lora(name: str, catalog: Catalog) -> Path | None:
    """The LoRA that an alias adds to the weights of its model."""
    return catalog.pretrained[name].spec.lora if name in catalog.pretrained else None


def _from_pretrained(
    cls: Any, location: str, dtype: torch.dtype, variant: str | None, revision: str | None, quantized: Any = None
) -> Any:
    """A classic pipeline, or a modular one where there is no classic and no revision is asked for."""
    folder, more = Path(location), {"variant": variant, "quantization_config": quantized}
    more = {name: value for name, value in more.items() if value is not None}
    if revision is not None:  # a modular pipeline's index names the repositories of its components
        return _classic_pipeline(cls, location, dtype, **more, revision=revision)
    if folder.is_dir():
        classic = (folder / "model_index.json").is_file()
        load = _classic_pipeline if classic else _modular_pipeline
        return load(cls, location, dtype, **more)
    try:
        return _classic_pipeline(cls, location, dtype, **more)
    except (OSError, ValueError) as error:
        try:
            return _modular_pipeline(cls, location, dtype, **more)
        except (OSError, ValueError):
            raise error from None


def _classic_pipeline(cls: Any, location: str, dtype: torch.dtype, **more: Any) -> Any:
    with hub_or_cache(location):
        return cls.from_pretrained(location, **more, **{DTYPE_KEYWORD: dtype})


def _modular_pipeline(cls: Any, location: str, dtype: torch.dtype, **more: Any) -> Any:
    """Its index names the place of each component, for those of a local folder the one it was saved at: ours wins."""
    if cls is not DiffusionPipeline:
        raise ValueError(f"it is modular, and no {cls.__name__}")
    with warnings.catch_warnings(), hub_or_cache(location):
        # an argument that diffusers hands on to huggingface_hub, which no longer knows it
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
        pipe = ModularPipeline.from_pretrained(location)
    here = {name: location for name in pipe.component_names if (Path(location) / name).is_dir()}
    with hub_or_cache(location if here.keys() >= {*pipe.pretrained_component_names} else None):
        pipe.load_components(pretrained_model_name_or_path=here, **more, **{DTYPE_KEYWORD: dtype})
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


def refuse_twice(model: ModelConfig) -> None:
    """What has a field of its own does not stand in the call as well."""
    said = ["num_inference_steps"] if model.guidance_scale is None else ["num_inference_steps", "guidance_scale"]
    for name in said:
        if name in model.call:
            raise RecipeError(
                f"{name!r} is said by model.{name}", where="model.call", next=f"leave it out, and set model.{name}"
            )
