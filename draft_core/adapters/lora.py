"""LoRA on a pipeline: a thin layer over peft and diffusers' own loaders.

Training adapts the denoisers. A LoRA that was loaded from a file may sit in text encoders too, and is scaled and
switched off there as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from draft_core.errors import CheckpointError, RecipeError
from draft_core.sampling.pipelines import find_denoisers

ADAPTER = "default"

# The projections of every attention block in diffusers' UNets and transformers.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

# Denoisers with attention projections under other names as well: endings of the names of linear layers.
FURTHER_TARGETS: dict[str, tuple[str, ...]] = {
    # most blocks hold query, key, value and feed-forward in one layer, and their output in another
    "Flux2Transformer2DModel": ("attn.to_qkv_mlp_proj", "attn.to_out"),
    "Kandinsky5Transformer3DModel": ("to_query", "to_key", "to_value", "attention.out_layer"),
}


class Lora:
    """The LoRA of a pipeline, as `adapter.Adapter` describes it.

    Arguments:
        pipe: a diffusers pipeline.
        rank, alpha, targets: as in `add_lora`; for `attach` alone.
    """

    def __init__(
        self, pipe: Any, *, rank: int = 8, alpha: float | None = None, targets: Sequence[str] | None = None
    ) -> None:
        self.pipe = pipe
        self.rank, self.alpha, self.targets = rank, alpha, targets

    def attach(self) -> None:
        """Adds it to the denoisers, freezing all else; raises RecipeError if no layer matches."""
        add_lora(self.pipe, rank=self.rank, alpha=self.alpha, targets=self.targets)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The denoisers' weights that require a gradient, in a fixed order."""
        return list(trainable(self.pipe))

    def base_model(self) -> AbstractContextManager[None]:
        """The base model inside, in every component."""
        return adapters_off(self.pipe)

    def scaled(self, scale: float) -> AbstractContextManager[None]:
        """Its contribution times `scale` inside, in every component."""
        return adapters_scaled(self.pipe, scale)

    def penalty(self) -> torch.Tensor:
        """The squared Frobenius norm of what it adds to the denoisers' weights, with gradient, ()."""
        return squared_norm(self.pipe)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The denoisers' LoRA weights on the CPU, in peft's names behind the component's."""
        return lora_state(self.pipe)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts weights of `state_dict` back; raises CheckpointError if they do not fit."""
        set_lora_state(self.pipe, dict(state))

    def save(self, folder: Path) -> Path:
        """Writes it as `files.save_lora` does; returns the file."""
        from draft_core.adapters.files import save_lora  # which builds on this module

        return save_lora(self.pipe, folder)


def add_lora(pipe: Any, *, rank: int, alpha: float | None = None, targets: Sequence[str] | None = None) -> None:
    """Freezes the whole pipeline and adds a trainable LoRA, in float32, to its denoiser, or to each of several.

    B starts at zero, so that the first samples are those of the base model.

    Arguments:
        pipe: a diffusers pipeline.
        rank: r of the LoRA (Hu et al. 2022, arXiv 2106.09685).
        alpha: numerator of its scale alpha / r; None makes the scale 1.
        targets: name endings of the linear layers to adapt; None takes the attention, `default_targets`.

    Raises:
        RecipeError: if no layer matches `targets`.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
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
    for parameter in trainable(pipe):
        parameter.data = parameter.data.float()


def default_targets(denoiser: Any) -> tuple[str, ...]:
    """The attention projections of a denoiser: endings of names, then whole names where an ending would not do."""
    endings = FURTHER_TARGETS.get(type(denoiser).__name__, ())
    layers = (name for name, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear))
    return (*ATTENTION, *(name for name in layers if name.endswith(endings)))


def trainable(pipe: Any) -> Iterator[torch.nn.Parameter]:
    """The denoisers' parameters that require a gradient, in a fixed order."""
    weights = (weight for denoiser in find_denoisers(pipe).values() for weight in denoiser.parameters())
    return (weight for weight in weights if weight.requires_grad)


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """The base model inside, without a second copy of it and in every component; the tuned one afterwards."""
    layers = [layer for component in _adapted_components(pipe) for layer in _adapted_layers(component)]
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
    networks = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    return [network for network in dict.fromkeys(networks) if any(True for _ in _adapted_layers(network))]


def _adapted_layers(network: torch.nn.Module) -> Iterator[Any]:
    for layer in network.modules():
        if isinstance(layer, LoraLayer) and (ADAPTER in layer.lora_A or ADAPTER in layer.lora_embedding_A):
            yield layer


def inject(denoiser: Any, config: LoraConfig) -> None:
    """Some of diffusers' models have no loader for adapters of their own; peft needs none."""
    if hasattr(denoiser, "add_adapter"):
        denoiser.add_adapter(config, adapter_name=ADAPTER)
    else:
        inject_adapter_in_model(config, denoiser, adapter_name=ADAPTER)


def lora_state(pipe: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights on the CPU, in peft's names behind the component's."""
    return {
        f"{name}.{key}": tensor.detach().cpu().clone()
        for name, denoiser in find_denoisers(pipe).items()
        for key, tensor in get_peft_model_state_dict(denoiser, adapter_name=ADAPTER).items()
    }


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
