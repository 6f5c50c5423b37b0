"""LoRA on a pipeline: a thin layer over peft and diffusers' own loaders.

Training adapts the denoisers. A LoRA that was loaded from a file may sit in text encoders too, and is scaled and
switched off there as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from draft_core.errors import CheckpointError, DraftError, RecipeError, require_from_one
from draft_core.sampling.pipelines import find_denoisers, networks

ADAPTER = "default"

# Calls its projections by the name of their argument. Not imported: that takes seconds, and most pipelines do without.
CALLED_BY_NAME = "AnimateDiffTransformer3D"
# The projections of every attention block in diffusers' UNets and transformers.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(
    pipe: Any, *, rank: int, alpha: float | None = None, targets: Sequence[str] | None = None, replace: bool = False
) -> None:
    """Freezes the whole pipeline and adds a trainable LoRA, in float32, to its denoiser, or to each of several.

    B starts at zero, so that the first samples are those of the base model.

    Arguments:
        pipe: a diffusers pipeline.
        rank: r of the LoRA (Hu et al. 2022, arXiv 2106.09685).
        alpha: numerator of its scale alpha / r; None makes the scale 1.
        targets: name endings of the linear layers to adapt; None takes the attention, `default_targets`.
        replace: take off the LoRAs that the pipeline carries first, in every component, as when a notebook's cell is
            run again.

    Raises:
        RecipeError: if no layer matches `targets`, or one is called in a way that a LoRA does not take.
        DraftError: if a denoiser carries a LoRA already and `replace` is False, or `rank` is not from 1 on.
    """
    require_from_one(rank, where="add_lora: rank")
    if replace:
        _take_off(pipe)
    _refuse_another(pipe)
    for network in networks(pipe).values():
        network.requires_grad_(False).eval()
    for denoiser in find_denoisers(pipe).values():
        chosen = list(default_targets(denoiser) if targets is None else targets)
        config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=chosen, init_lora_weights="gaussian")
        try:
            inject(denoiser, config)
        except ValueError as error:
            raise RecipeError(
                f"no layer of {type(denoiser).__name__} can be adapted at {', '.join(chosen)} ({error})",
                where="model.lora.targets",
                next="name endings of its linear layers",
            ) from error
        _require_callable(denoiser)
    for parameter in trainable(pipe):
        parameter.data = parameter.data.float()


def _require_callable(denoiser: torch.nn.Module) -> None:
    """Refuses a LoRA on what diffusers calls as `layer(input=...)`; peft's layers take `x`."""
    for name, block in denoiser.named_modules():
        if type(block).__name__ == CALLED_BY_NAME:
            for ending in ("proj_in", "proj_out"):
                if isinstance(getattr(block, ending), LoraLayer):
                    raise RecipeError(
                        f"{name}.{ending} is called by the name of its argument, which a LoRA's layer does not take",
                        where="model.lora.targets",
                        next=f"leave the {ending} of motion modules out",
                    )


def _refuse_another(pipe: Any) -> None:
    """A further LoRA would switch off the one that is there."""
    for denoiser in find_denoisers(pipe).values():
        if names := adapter_names(denoiser):
            raise DraftError(
                f"its {type(denoiser).__name__} carries a LoRA already ({', '.join(names)})",
                where=type(pipe).__name__,
                next="make it a part of the model first, pipe.fuse_lora() and pipe.unload_lora_weights(), or take it "
                "off, add_lora(..., replace=True); a recipe goes on from a LoRA with model.lora.init",
            )


def _take_off(pipe: Any) -> None:
    """The layers of every network as they were before LoRAs were added."""
    for network in networks(pipe).values():
        if adapter_names(network):
            recurse_remove_peft_layers(network)
            for said in ("peft_config", "_hf_peft_config_loaded"):  # by diffusers and transformers of what they carry
                vars(network).pop(said, None)


def adapter_names(network: torch.nn.Module) -> list[str]:
    """The adapters of peft's that a network carries."""
    return sorted({name for layer in network.modules() if isinstance(layer, LoraLayer) for name in layer.lora_A})


def default_targets(denoiser: Any) -> tuple[str, ...]:
    """The attention projections of a denoiser: endings of names, then whole names where an ending would not do.

    A projection is a linear layer that an attention block holds itself, whatever its name: those of queries, keys and
    values fused into one, and those of a second stream, too.
    """
    layers = [name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear)]
    return (*ATTENTION, *(name for name in layers if not name.endswith(_ENDINGS) and _is_projection(denoiser, name)))


_ENDINGS = tuple(f".{ending}" for ending in ATTENTION)
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)


def _is_projection(denoiser: Any, layer: str) -> bool:
    """Whether the block that holds it is one of attention, by the name of its class; pooling a prompt is none."""
    owner, _, _ = layer.rpartition(".")
    while owner and isinstance(denoiser.get_submodule(owner), _CONTAINERS):
        owner, _, _ = owner.rpartition(".")
    block = type(denoiser.get_submodule(owner)).__name__
    is_attention = "Attention" in block or "Attn" in block
    return owner != "" and is_attention and "Processor" not in block and "Pooling" not in block


def trainable(pipe: Any) -> Iterator[torch.nn.Parameter]:
    """The denoisers' LoRA weights that require a gradient, in a fixed order."""
    for denoiser in find_denoisers(pipe).values():
        adapted = {id(weight) for layer in _adapted_layers(denoiser) for weight in _weights(layer)}
        yield from (weight for weight in denoiser.parameters() if weight.requires_grad and id(weight) in adapted)


def _weights(layer: Any) -> Iterator[torch.nn.Parameter]:
    """The adapter's weights in a layer, whatever parts it has there."""
    for part in layer.adapter_layer_names:
        held = getattr(layer, part)
        if ADAPTER in held:
            yield from [held[ADAPTER]] if isinstance(held[ADAPTER], torch.nn.Parameter) else held[ADAPTER].parameters()


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """The base model inside, without a second copy of it and in every component; afterwards what was before.

    It nests: what is off already stays off.
    """
    adapted = [layer for component in _adapted_components(pipe) for layer in _adapted_layers(component)]
    layers = [layer for layer in adapted if not layer.disable_adapters]
    weights = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # which also makes peft's active adapter trainable
        for weight, requires_grad in weights:
            weight.requires_grad_(requires_grad)


@contextmanager
def adapters_scaled(pipe: Any, scale: float) -> Iterator[None]:
    """The adapter's contribution times `scale` inside, in every component, and as before afterwards.

    0 is the base model, 1 what was trained.
    """
    with ExitStack() as stack:
        for component in _adapted_components(pipe):
            stack.enter_context(rescale_adapter_scale(component, scale))
        yield


def set_scale(pipe: Any, scale: float) -> None:
    """Multiplies the adapter's contribution, as it was trained, by `scale` from now on, in every component."""
    for component in _adapted_components(pipe):
        for layer in _adapted_layers(component):
            layer.set_scale(ADAPTER, scale)


def squared_norm(pipe: Any) -> torch.Tensor:
    """Sum over the denoisers' layers of |scale B A|^2, the squared Frobenius norm of what the LoRA adds, with gradient.

    The product is never built: |B A|^2 = sum((B^T B) * (A A^T)).
    """
    norms = []
    for layer in (layer for denoiser in find_denoisers(pipe).values() for layer in _adapted_layers(denoiser)):
        down, up = layer.lora_A[ADAPTER].weight.flatten(1), layer.lora_B[ADAPTER].weight.flatten(1)
        norms.append(((up.T @ up) * (down @ down.T)).sum() * layer.scaling[ADAPTER] ** 2)
    return torch.stack(norms).sum()


def is_adapted(pipe: Any) -> bool:
    """Whether one of its networks carries the adapter."""
    return bool(_adapted_components(pipe))


def _adapted_components(pipe: Any) -> list[torch.nn.Module]:
    """The networks of a pipeline that carry the adapter: denoisers, and text encoders of a LoRA from elsewhere."""
    parts = dict.fromkeys(networks(pipe).values())
    return [network for network in parts if any(True for _ in _adapted_layers(network))]


def _adapted_layers(network: torch.nn.Module) -> Iterator[Any]:
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and (ADAPTER in layer.lora_A or ADAPTER in layer.lora_embedding_A):
            yield layer


def inject(denoiser: Any, config: LoraConfig, adapter: str = ADAPTER) -> None:
    """Some of diffusers' models have no loader for adapters of their own; peft needs none."""
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config, adapter_name=adapter)
    else:
        inject_adapter_in_model(config, denoiser, adapter_name=adapter)


def lora_state(pipe: Any, adapter: str = ADAPTER) -> dict[str, torch.Tensor]:
    """The weights of an adapter of the denoisers on the CPU, in peft's names behind the component's."""
    return {
        f"{name}.{key}": tensor.detach().cpu().clone()
        for name, denoiser in find_denoisers(pipe).items()
        for key, tensor in get_peft_model_state_dict(denoiser, _held(denoiser), adapter_name=adapter).items()
    }


def _held(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of all its LoRAs.

    Not by `network.state_dict()`, which drops the gathered parts of a sharded denoiser: in the main process alone where
    that alone writes, so that the others would then wait for it in vain.
    """
    return {name: weight for name, weight in network.named_parameters() if "lora_" in name}


def set_lora_state(pipe: Any, state: dict[str, torch.Tensor]) -> None:
    """Puts weights of `lora_state` back into the adapter.

    Raises:
        CheckpointError: if they do not fit the adapter, by name or by shape.
    """
    expected = {name: tensor.shape for name, tensor in lora_state(pipe).items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"its LoRA does not fit this model: {len(different)} of {len(expected)} tensors differ, "
            f"first {different[0]}",
            next="resume with the recipe that the run was started with",
        )
    for name, denoiser in find_denoisers(pipe).items():
        set_peft_model_state_dict(denoiser, of_component(name, state), adapter_name=ADAPTER)


def of_component(name: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a state belongs to the component `name`, without that name."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
