"""The classes of diffusers that a recipe names, pipelines and schedulers, found before anything is loaded."""

from __future__ import annotations

import difflib
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, SchedulerMixin

from draft_core.errors import RecipeError, first_line
from draft_core.recipe.schema import SchedulerConfig
from draft_core.sampling import pipelines


def pipeline_class(name: str) -> Any:
    """The class of this name, a pipeline that diffusers exports; raises RecipeError if there is none."""
    return _class_named(name, DiffusionPipeline, "Pipeline", where="model.pipeline")


def index_in(folder: str) -> dict[str, Any] | None:
    """What the folder of a classic pipeline says of its parts; None where it is none."""
    try:
        index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) else None


def class_named_in(folder: str) -> Any:
    """The class that a folder of a classic pipeline names; None where nothing is said, or no class of diffusers."""
    name = (index_in(folder) or {}).get("_class_name")
    return _exported(name, DiffusionPipeline) if isinstance(name, str) else None


def _exported(name: str, base: type) -> Any:
    """The class of this name and kind that diffusers exports; None where there is none."""
    found = getattr(diffusers, name, None)
    return found if isinstance(found, type) and issubclass(found, base) else None


def scheduler_class(scheduler: SchedulerConfig) -> Any:
    """The class of the scheduler; raises RecipeError if there is none, or it lacks one of the settings."""
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
        made = scheduler_class(scheduler).from_config(own.config, **scheduler.settings)
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
