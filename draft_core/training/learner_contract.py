"""The contract of `learners.learner.Learner`, checked where the trainer uses it: each breach is one sentence."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch

from draft_core.adapters.adapter import Adapter
from draft_core.adapters.regularizers import Regularizers
from draft_core.errors import DraftError, RecipeError, raised
from draft_core.learners.learner import ADAPTER, Learner, Loss
from draft_core.rewards.objective import Objective
from draft_core.rewards.protocol import check_takes, takes
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.distributed import is_loss_of_another
from draft_core.training.settings import RegularizerSettings, TrainSettings

AUTHOR = "tell the method's author"


def name_of(learner: Learner) -> str:
    """The learner's class with its module: what tells one method's checkpoints from another's."""
    return f"{type(learner).__module__}.{type(learner).__qualname__}"


@contextmanager
def in_one_sentence(learner: Learner, what: str) -> Iterator[None]:
    """An exception of the learner's own inside becomes a `DraftError` that names its method `what`.

    Want of memory and the loss of another process stay what they are.
    """
    try:
        yield
    except DraftError:
        raise
    except Exception as error:
        if is_want_of_memory(error) or (isinstance(error, RuntimeError) and is_loss_of_another(error)):
            raise
        raise _breach(learner, f"its {what} raised {raised(error)}") from error


def require_fit(
    sampler: DifferentiableSampler,
    learner: Learner,
    settings: TrainSettings,
    regularizers: RegularizerSettings,
    gate: Objective | None,
) -> None:
    """Raises a `DraftError` if learner, settings, sampler and gate do not fit one another."""
    if {*regularizers.kl_gate} != {*(gate.rewards if gate else ())}:
        raise DraftError(
            f"it names {', '.join(regularizers.kl_gate) or 'none'}, and the gate has other metrics",
            where="regularizers.kl_gate",
            next="give the trainer a gate of these metrics by their names",
        )
    require_regularized(learner, regularizers)
    if regularizers.asks_base_model and sampler.base_model is None and regularizers.kl_anchor is None:
        raise DraftError("the sampler knows no base model to stay near to", where="kl", next="give it base_model")
    if settings.normalize == "gradient" and not learner.needs_gradient:
        raise DraftError(
            "the method takes no gradient of the rewards", where="train.normalize", next="use scale, or none"
        )


def require_regularized(learner: Learner, regularizers: RegularizerSettings) -> None:
    """Raises a `DraftError` if the regularizers have no effect on the learner's losses, or not the one they say."""
    if regularizers.kl and not learner.yields_divergence:
        raise DraftError("the method yields no divergence to weigh", where="kl", next="leave it out, or use lora_norm")
    if regularizers.kl_relative and not getattr(learner, "trains_through_sampler", False):
        raise DraftError(
            "the method does not backpropagate the scores through the sampler",
            where="regularizers.kl_relative",
            next="leave it out, or use kl or lora_norm",
        )
    if regularizers.kl_gate and not getattr(learner, "gates_divergence", False):
        raise DraftError(
            "the method does not weigh how far each image is from the base model",
            where="regularizers.kl_gate",
            next="leave it out",
        )
    if regularizers.kl_anchor is not None and getattr(learner, "needs_base_model", False):
        raise DraftError(
            "the method compares with the base model itself, which would become the anchor",
            where="regularizers.kl_anchor",
            next="leave it out",
        )


def regularizers_of(settings: RegularizerSettings, adapter: Adapter, sampler: DifferentiableSampler) -> Regularizers:
    """The regularizers of these settings; the sampler takes its own part, and a moving anchor for its base model."""
    ema = None if settings.kl_anchor is None else settings.kl_anchor.ema
    made = Regularizers(
        adapter, kl=settings.kl, lora_norm=settings.lora_norm, ema=ema, relative=settings.kl_relative > 0
    )
    sampler.kl_relative = settings.kl_relative
    if made.anchor is not None:
        sampler.base_model = made.anchor.in_place
    return made


def require_videos(sampler: DifferentiableSampler, objective: Objective, settings: TrainSettings) -> None:
    """That a model makes the videos that its rewards and `train.frames` are for.

    Raises:
        RewardError: if a reward scores videos, and the model makes images.
        RecipeError: if frames are to be chosen of images, or more than a video has.
    """
    if settings.frames is None and "video" not in map(takes, objective.rewards.values()):
        return
    frames, model = sampler.traits.frames, type(sampler.pipe).__name__
    check_takes(dict(objective.rewards.items()), makes_videos=frames is not None, model=model)
    if settings.frames is None:
        return
    if frames is None:
        raise RecipeError(f"{model} makes images, which have none", where="train.frames", next="leave it out")
    if settings.frames.count > frames:
        raise RecipeError(
            f"it asks for {settings.frames.count} frames, and the videos have {frames}",
            where="train.frames.count",
            next=f"ask for {frames} or fewer, or leave train.frames out",
        )


def require_suitable(learner: Learner, sampler: DifferentiableSampler) -> None:
    """That a run can be drawn as the learner needs it: its own `check`, and the noise that was asked for.

    Raises:
        DraftError: if the learner or the scheduler refuses.
    """
    if sampler.noise:
        sampler.noisy_steps  # noqa: B018  a scheduler to which none can be added says so
    if check := getattr(learner, "check", None):
        with in_one_sentence(learner, "check()"):
            check(sampler)


def require_own_values(sampler: DifferentiableSampler, settings: TrainSettings) -> None:
    """Refuses calls of several prompts where the pipeline takes one image, say, for all of them.

    Raises:
        DraftError: that says how large a batch may be.
    """
    names, of_each = sampler.columns.names, settings.images_per_prompt
    if names and settings.batch_size > of_each and not sampler.takes_each:
        raise DraftError(
            f"a call of {type(sampler.pipe).__name__} takes one {' and one '.join(names)} for all its prompts",
            where="train.batch_size",
            next=f"set it to {of_each}, train.images_per_prompt, and raise train.gradient_accumulation_steps instead",
        )


def require_columns(learner: Learner, columns: Mapping[str, Sequence[str]]) -> None:
    """That the learner can use what stands beside the prompts: its own `check_columns`.

    Raises:
        DraftError: if the learner refuses.
    """
    if check := getattr(learner, "check_columns", None):
        with in_one_sentence(learner, "check_columns()"):
            check(columns)


def modules_of(learner: Learner) -> Mapping[str, torch.nn.Module]:
    """What `modules()` returned, if the trainer can train it.

    Raises:
        DraftError: if that raises, is no mapping of modules with parameters, or has one that is called "adapter".
    """
    with in_one_sentence(learner, "modules()"):
        modules: Any = learner.modules()
    if not isinstance(modules, Mapping):
        raise _breach(learner, f"its modules() returned {type(modules).__name__}, not a mapping")
    for name, module in modules.items():
        if name == ADAPTER:
            raise DraftError(f"the method calls a module of its own {ADAPTER!r}", where="learner", next="rename it")
        if not isinstance(module, torch.nn.Module):
            raise _breach(learner, f"{name!r} of its modules() is {type(module).__name__}, not a torch.nn.Module")
        if not any(True for _ in module.parameters()):
            raise _breach(learner, f"{name!r} of its modules() has no parameters to train", "leave it out")
    return modules


def losses_of(learner: Learner, losses: Any) -> Iterator[Loss]:
    """What `losses()` returned, if it is an iterator.

    Raises:
        DraftError: if it is anything else.
    """
    if not isinstance(losses, Iterator):
        raise _breach(learner, f"its losses() returned {type(losses).__name__}, not an iterator", "yield each `Loss`")
    return losses


def checked(learner: Learner, loss: Any) -> Loss:
    """A loss as the trainer can use it.

    Raises:
        DraftError: if it is no `Loss`, or a field of it is not what `Loss` says.
    """
    if not isinstance(loss, Loss):
        raise _breach(learner, f"it yielded {type(loss).__name__}, not a Loss", "yield each `Loss`")
    for name, value in (("value", loss.value), ("divergence", loss.divergence)):
        if name == "divergence" and value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise _breach(learner, f"the {name} of its loss is {type(value).__name__}, not a tensor")
        if value.shape != () or not value.is_floating_point():
            raise _breach(
                learner, f"the {name} of its loss is {value.dtype} of shape {tuple(value.shape)}, not one number"
            )
    if not _is_number(loss.share) or not math.isfinite(loss.share):
        raise _breach(learner, f"the share of its loss is {loss.share!r}, not a finite number")
    for name, count in (("images", loss.images), ("queries", loss.queries)):
        if not isinstance(count, int) or count < 0:
            raise _breach(learner, f"the {name} of its loss are {count!r}, not a number from 0 on")
    if not isinstance(loss.report, Mapping):
        raise _breach(learner, f"the report of its loss is {type(loss.report).__name__}, not a mapping")
    for name, number in loss.report.items():
        if not (isinstance(name, str) and _is_number(number)):
            raise _breach(learner, f"{name!r} in the report of its loss is {type(number).__name__}, not a number")
    if not isinstance(loss.notes, (list, tuple)) or not all(isinstance(note, str) for note in loss.notes):
        raise _breach(learner, f"the notes of its loss are {loss.notes!r}, not sentences")
    return loss


def remembered(learner: Learner) -> dict[str, Any]:
    """A snapshot of the learner's `state_dict()`.

    Raises:
        DraftError: if that raises, or is no mapping.
    """
    with in_one_sentence(learner, "state_dict()"):
        state: Any = learner.state_dict()
        if not isinstance(state, Mapping):
            raise _breach(learner, f"its state_dict() returned {type(state).__name__}, not a mapping")
        return {name: snapshot(value) for name, value in state.items()}


def snapshot(value: Any) -> Any:
    """A copy that later updates do not change, tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {name: snapshot(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(snapshot(item) for item in value)
    return copy.deepcopy(value)


def is_want_of_memory(error: Exception) -> bool:
    """Torch has a class for GPUs alone, and words for the rest."""
    phrases = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(phrase in str(error) for phrase in phrases)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _breach(learner: Learner, what: str, next: str = AUTHOR) -> DraftError:
    return DraftError(what, where=f"method {type(learner).__name__}", next=next)
