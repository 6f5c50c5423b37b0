"""An alias, a folder, a hub name or a file becomes a diffusers pipeline, set up as a recipe says."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModularPipeline, SchedulerMixin
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
from draft_core.recipe.schema import ImageFile, LoraConfig, ModelConfig, RecipeBase, SchedulerConfig
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.rewards.columns import check_images_of
from draft_core.rewards.hub import hub_or_cache
from draft_core.rewards.images import read_image, to_pil
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
        catalog: None takes what is installed.

    Raises:
        RecipeError: if there is no such pipeline, or the arguments do not go together.
        DraftError: if it cannot be loaded, for want of a network, say.
    """
    catalog = catalog if catalog is not None else load_catalog()
    location = locate_pretrained(name, catalog)
    _check_source(location, pipeline, config, variant)
    cls = DiffusionPipeline if pipeline is None else _pipeline_class(pipeline)
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(torch_dtype, torch.dtype):
        raise RecipeError(
            f"{dtype!r} names no dtype of torch", where="model.dtype", next="give 'float32', 'bfloat16' or 'float16'"
        )
    for module in catalog.pretrained[name].spec.modules if name in catalog.pretrained else ():
        importlib.import_module(module)
    try:
        with LOADING:
            if is_single_file(location):
                more = {} if config is None else {"config": config}
                with hub_or_cache(config):  # which says how it is built
                    pipe = cls.from_single_file(location, **more, **{DTYPE_KEYWORD: torch_dtype})
            else:
                pipe = _from_pretrained(cls, location, torch_dtype, variant, _revision(name, catalog))
    except _LOADING_ERRORS as error:
        known = "check the files in it" if Path(location).exists() else "check the name and the network"
        raise DraftError(
            f"{name} cannot be loaded ({first_line(error)})",
            where="model.pretrained",
            next=f"{known}, or give a local folder",
        ) from error
    for network in pipelines.networks(pipe).values():
        # transformers loads in the precision that its config names, whatever the pipeline asked for
        if getattr(network, "dtype", torch_dtype) != torch_dtype:
            network.to(torch_dtype)
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            setattr(pipe, attribute, None)
    if name in catalog.pretrained and (lora := catalog.pretrained[name].spec.lora) is not None:
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
    cls = _class_named_in(location) if model.pipeline is None else _pipeline_class(model.pipeline)
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
        _scheduler_class(model.scheduler)
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


def _pipeline_class(name: str) -> Any:
    return _class_named(name, DiffusionPipeline, "Pipeline", where="model.pipeline")


def _class_named_in(folder: str) -> Any:
    """The class that a folder of a classic pipeline names; None where nothing is said, or no class of diffusers."""
    try:
        name = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _exported(name, DiffusionPipeline) if isinstance(name, str) else None


def _exported(name: str, base: type) -> Any:
    """The class of this name and kind that diffusers exports; None where there is none."""
    found = getattr(diffusers, name, None)
    return found if isinstance(found, type) and issubclass(found, base) else None


def _scheduler_class(scheduler: SchedulerConfig) -> Any:
    cls = _class_named(scheduler.name, SchedulerMixin, "Scheduler", where="model.scheduler.name")
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    if unknown := [name for name in scheduler.settings if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise RecipeError(
            f"{scheduler.name} has no setting {unknown[0]!r}",
            where="model.scheduler.settings",
            next=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}",
        )
    return cls


def _class_named(name: str, base: type, ending: str, *, where: str) -> Any:
    found = _exported(name, base)
    if found is None:
        classes = [other for other in dir(diffusers) if other.endswith(ending)]
        near = difflib.get_close_matches(name, classes, n=1)
        raise RecipeError(
            f"diffusers {diffusers.__version__} has no {name} that can be used here",
            where=where,
            next=f"did you mean {near[0]}?" if near else "name a class that it exports",
        )
    return found


def set_scheduler(pipe: Any, scheduler: SchedulerConfig) -> None:
    """Gives the pipeline another scheduler, made from its own's configuration.

    Raises:
        RecipeError: if it steps along a flow where the pipeline's own does not, or the other way round.
    """
    own = pipe.scheduler
    try:
        made = _scheduler_class(scheduler).from_config(own.config, **scheduler.settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RecipeError(
            f"{scheduler.name} cannot be made so ({first_line(error)})", where="model.scheduler", next="change settings"
        ) from error
    if _is_flow(made) != _is_flow(own):
        takes, makes = ("noise", "a flow") if _is_flow(own) else ("a flow", "noise")
        raise RecipeError(
            f"{scheduler.name} takes predictions of {takes}, and {type(pipe).__name__} makes those of {makes}",
            where="model.scheduler",
            next=f"use another, such as {type(own).__name__}, or its settings for it",
        )
    if pipelines.is_modular(pipe):
        pipe.update_components(scheduler=made)
    else:
        pipe.scheduler = made


def _is_flow(scheduler: Any) -> bool:
    config = scheduler.config
    is_set = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return bool(is_set) or "flow" in type(scheduler).__name__.lower()


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


def _from_pretrained(cls: Any, location: str, dtype: torch.dtype, variant: str | None, revision: str | None) -> Any:
    """A classic pipeline, or a modular one where there is no classic and no revision is asked for."""
    folder, more = Path(location), {} if variant is None else {"variant": variant}
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


def tile_decode(pipe: Any) -> None:
    """Lets the decoder work in tiles, which takes less memory.

    Raises:
        RecipeError: if it cannot.
    """
    if (enable := getattr(getattr(pipe, "vae", None), "enable_tiling", None)) is None:
        raise RecipeError(
            f"the decoder of {type(pipe).__name__} cannot work in tiles",
            where="model.tiled_decode",
            next="leave it out; `model.decode: sliced` saves memory too",
        )
    enable()
