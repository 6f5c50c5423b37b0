"""What a diffusers pipeline is made of: its denoisers, its guiders, the keywords of its call, and the call itself."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from draft_core.errors import SamplerError
from draft_core.sampling import seams

# What a pipeline applies to finished images by way of numpy or PIL, which cuts the gradient.
IMAGE_FILTERS = ("safety_checker", "watermark")

# Attribute names under which diffusers pipelines keep the model that predicts noise or velocity; pipelines that
# change models on the way have a second one, such as transformer_2.
DENOISERS = ("unet", "transformer")


def find_denoiser(pipe: Any) -> tuple[str, Any]:
    """The pipeline's denoiser and the attribute it sits under; of several, the first.

    Raises:
        SamplerError: if the pipeline has none under a name we know.
    """
    for name in DENOISERS:
        if isinstance(module := getattr(pipe, name, None), torch.nn.Module):
            return name, module
    raise SamplerError(
        f"{type(pipe).__name__} has no denoiser under {' or '.join(DENOISERS)}",
        where="pipeline",
        next="use a text-to-image or text-to-video diffusers pipeline",
    )


def find_denoisers(pipe: Any) -> dict[str, Any]:
    """All denoisers of the pipeline under their component names, the first first.

    Raises:
        SamplerError: if the pipeline has none.
    """
    first, denoiser = find_denoiser(pipe)
    return {first: denoiser, **modules_named(pipe, *DENOISERS)}


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components of the pipeline that are networks, under their names."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def modules_named(pipe: Any, *parts: str) -> dict[str, torch.nn.Module]:
    """The pipeline's networks whose component name contains one of `parts`: "unet", "encoder", ..."""
    return {name: network for name, network in networks(pipe).items() if any(part in name for part in parts)}


def has_float16(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether one of the networks has weights in float16."""
    return any(weight.dtype == torch.float16 for module in modules for weight in module.parameters())


# The call itself. Classic pipelines have one `__call__` under `torch.no_grad`. Modular ones are trees of blocks, each
# with a `__call__` under a `no_grad` of its own, and one more inside the pipeline's.


def is_modular(pipe: Any) -> bool:
    """Whether the pipeline is a tree of blocks (`diffusers.ModularPipeline`)."""
    return hasattr(pipe, "blocks") and hasattr(pipe, "_blocks")


def guiders(pipe: Any) -> dict[str, Any]:
    """The components that guide the pipeline, under their names; most classic pipelines have none."""
    return {name: part for name, part in pipe.components.items() if "guider" in name and part is not None}


def remembering(pipe: Any) -> list[Any]:
    """What may keep something from one step to the next: the scheduler first, then the guiders."""
    return [pipe.scheduler, *guiders(pipe).values()]


def steered(pipe: Any) -> list[Any]:
    """The pipeline and the parts of it whose methods a steered call replaces: one call at a time may do so."""
    parts = [*find_denoisers(pipe).values(), *modules_named(pipe, "controlnet", "encoder").values()]
    return [part for part in (pipe, pipe.scheduler, getattr(pipe, "vae", None), *parts) if part is not None]


def call_inputs(pipe: Any) -> list[str]:
    """The keywords that the pipeline's call takes.

    A `**kwargs` in a signature counts for nothing: pipelines keep it for deprecated names and ignore the rest.
    """
    if is_modular(pipe):
        return [parameter.name for parameter in pipe.blocks.inputs if parameter.name]
    return call_inputs_of(type(pipe))


def call_inputs_of(cls: type) -> list[str]:
    """The same of a class of classic pipelines, before there is one."""
    return [
        name
        for name, parameter in inspect.signature(inspect.unwrap(cls.__call__)).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name != "self"
    ]


def tuple_inputs(pipe: Any) -> set[str]:
    """The keywords of the call whose type is a tuple and no list."""
    return {name for name, type_ in _input_types(pipe).items() if "tuple" in type_ and "list" not in type_}


def _number_inputs(pipe: Any) -> set[str]:
    """The keywords of the call whose type is a number, and nothing that True could be."""
    other = re.compile("bool|callable|dict|any")
    types = _input_types(pipe).items()
    return {name for name, type_ in types if re.search(r"\b(int|float)\b", type_) and not other.search(type_)}


def _input_types(pipe: Any) -> dict[str, str]:
    """Keyword of the call -> its type as it is written there, in small letters."""
    if is_modular(pipe):
        types = {parameter.name: parameter.type_hint for parameter in pipe.blocks.inputs if parameter.name}
    else:
        signature = inspect.signature(inspect.unwrap(type(pipe).__call__))
        types = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return {name: (getattr(type_, "__name__", "") + str(type_)).lower() for name, type_ in types.items()}


@contextmanager
def differentiable(pipe: Any) -> Iterator[Callable[..., torch.Tensor]]:
    """A function that is the pipeline's own call with `torch.no_grad` taken off, and gives the images alone."""
    if not is_modular(pipe):
        call = inspect.unwrap(type(pipe).__call__)
        yield lambda **arguments: _images_of(call(pipe, **arguments, return_dict=False))
        return
    with _blocks_recording(pipe):
        yield lambda **arguments: pipe(**arguments, output=_output_name(pipe))


def _images_of(output: Any) -> Any:
    """The first of what a classic call returns; some return their images as they are."""
    return output[0] if isinstance(output, (tuple, list)) else output


@contextmanager
def _blocks_recording(pipe: Any) -> Iterator[None]:
    """The block classes of a modular pipeline without their `torch.no_grad`."""
    wrapped = {
        cls: vars(cls)["__call__"]
        for block in _blocks(pipe)
        for cls in type(block).__mro__
        if hasattr(vars(cls).get("__call__"), "__wrapped__")
    }
    for cls, method in wrapped.items():
        setattr(cls, "__call__", inspect.unwrap(method))  # noqa: B010
    try:
        yield
    finally:
        for cls, method in wrapped.items():
            setattr(cls, "__call__", method)  # noqa: B010


def _blocks(pipe: Any) -> list[Any]:
    """All blocks of a modular pipeline's tree, the root first."""
    found = [pipe._blocks]  # what runs; the public property gives a copy
    for block in found:
        found += list((getattr(block, "sub_blocks", None) or {}).values())
    return found


def _output_name(pipe: Any) -> str:
    names = {output.name for output in pipe.blocks.intermediate_outputs} | {o.name for o in pipe.blocks.outputs}
    for name in ("images", "videos"):
        if name in names:
            return name
    raise SamplerError(
        f"none of the outputs of {type(pipe).__name__} is images or videos",
        where="pipeline",
        next="use blocks that decode",
    )


@contextmanager
def without_traces(pipe: Any) -> Iterator[None]:
    """This thread alone tries the pipeline inside, without gradient; afterwards it is as before."""
    alone = seams.in_use(pipe, steered(pipe), before_call=True)
    traces = seams.state_restored(pipe, *remembering(pipe))
    with alone, torch.no_grad(), torch.random.fork_rng(devices=[]), traces:
        yield


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """The pipeline's own per-step progress bar is off inside."""
    bars = [block for block in (_blocks(pipe) if is_modular(pipe) else [pipe]) if hasattr(block, "progress_bar")]
    before = [vars(bar).get("_progress_bar_config") for bar in bars]
    for bar, config in zip(bars, before, strict=True):
        bar._progress_bar_config = {**(config or {}), "disable": True}
    try:
        yield
    finally:
        for bar, config in zip(bars, before, strict=True):
            if config is None:
                del bar._progress_bar_config
            else:
                bar._progress_bar_config = config


# What is refused before anything is loaded or drawn


def check_drivable(pipe: Any) -> None:
    """Refuses what has no steps to record, or cuts the gradient by its own doing.

    Raises:
        SamplerError: naming what is in the way.
    """
    name = type(pipe).__name__
    if not (callable(pipe) and hasattr(pipe, "components")):
        raise SamplerError(f"{name} is no diffusers pipeline", where="pipeline", next="give a pipeline, loaded")
    scheduler: Any = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step"):
        raise SamplerError(f"{name} has no scheduler", where="pipeline", next="use a pipeline that samples in steps")
    if missing := [key for key in seams.STEP_ARGUMENTS if key not in inspect.signature(scheduler.step).parameters]:
        raise SamplerError(
            f"the step of its {type(scheduler).__name__} takes no {' and no '.join(missing)}",
            where=name,
            next="use another scheduler",
        )
    find_denoiser(pipe)
    if ".cosmos." in type(pipe).__module__ and "safety_checker" in pipe.components:
        raise SamplerError(
            "its licence demands its safety checker, which goes through numpy and would cut the gradient",
            where=name,
            next="use another pipeline, it cannot be trained",
        )
    for attribute in IMAGE_FILTERS:
        if getattr(pipe, attribute, None) is not None:
            raise SamplerError(
                f"the {attribute} of {name} goes through numpy and would cut the gradient",
                where="pipeline",
                next=f"set `pipe.{attribute} = None`",
            )


class KeywordError(SamplerError):
    """A keyword that the call of a pipeline does not take, or that the sampler sets.

    Attributes:
        keyword: which one.
    """

    def __init__(self, what: str, *, where: str | None = None, next: str | None = None, keyword: str = "") -> None:
        super().__init__(what, where=where, next=next)
        self.keyword = keyword


def check_keywords(pipe: Any, call_kwargs: dict[str, Any], *, takes_steps: bool) -> None:
    """Refuses keywords that the pipeline's call does not take, and True and False where it takes a number.

    Raises:
        KeywordError: naming the keyword, and the nearest one that the call takes.
    """
    name = type(pipe).__name__
    inputs = call_inputs(pipe)
    if takes_steps and "num_inference_steps" not in inputs:
        own = [keyword for keyword in inputs if "steps" in keyword]
        raise KeywordError(
            "its call takes no num_inference_steps",
            keyword="num_inference_steps",
            where=name,
            next="give num_inference_steps=None" + (f", and {' and '.join(own)} as you like" if own else ""),
        )
    numbers = _number_inputs(pipe)
    for keyword, value in call_kwargs.items():
        if keyword in ("prompt", "output_type", "return_dict"):
            said = f"{keyword!r} is set by the sampler itself"
            raise KeywordError(said, keyword=keyword, where=f"{name} call", next="leave it out")
        if keyword not in inputs:
            near = difflib.get_close_matches(keyword, inputs, n=1)
            raise KeywordError(
                f"its call takes no {keyword!r}",
                keyword=keyword,
                where=name,
                next=f"did you mean {near[0]!r}?" if near else "see the pipeline's documentation",
            )
        if isinstance(value, bool) and keyword in numbers:  # which Python would take for 1 and 0
            raise KeywordError(f"{keyword!r} is {value}", keyword=keyword, where=name, next="give a number")


def has_blocks(*networks: Any) -> bool:
    """Whether diffusers can checkpoint each of these networks block by block."""
    return all(getattr(network, "_supports_gradient_checkpointing", False) for network in networks)


def check_blocks(pipe: Any, *, denoisers: bool, decoder: bool) -> None:
    """That diffusers can checkpoint what is to be recomputed block by block."""
    networks = list(find_denoisers(pipe).values()) if denoisers else []
    for network in [*networks, *([getattr(pipe, "vae", None)] if decoder else [])]:
        if not has_blocks(network):
            raise SamplerError(
                f"{type(network).__name__} cannot be recomputed block by block",
                where=type(pipe).__name__,
                next="use another way to save memory",
            )


def undecoded(pipe: Any) -> dict[str, Any]:
    """The argument by which a call leaves the decoder out; a modular one has none."""
    return {} if is_modular(pipe) else {"output_type": "latent"}


def prompt_of_each(prompts: Sequence[str] | None, images: int) -> tuple[str, ...]:
    """The prompt of every image; pipelines keep the images of one prompt together."""
    prompts = prompts or [""]
    return tuple(prompt for prompt in prompts for _ in range(images // len(prompts)))


def length(value: Any) -> int:
    """The items of a list or a batch; 0 for anything else."""
    return len(value) if isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0) else 0
