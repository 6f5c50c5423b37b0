"""Published models on torch's meta device: pipelines whose tensors have a shape, a type and a size, but no numbers.

So a model of 14 billion parameters is built in seconds, and a pipeline's own call runs on it as on a GPU, in no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from draft_core.cost.published import Model, Network
from draft_core.sampling import seams
from draft_core.sampling.decoders.tiles import features_in

META = torch.device("meta")


def build_network(network: Network, dtype: torch.dtype, quantization: str | None = None) -> Any:
    """The network on the meta device, frozen, in the precision that `from_pretrained` would load it in.

    Arguments:
        quantization: of its linear layers, "nf4" or "int8".
    """
    is_of_diffusers = network.cls in dir(diffusers)
    cls = getattr(diffusers if is_of_diffusers else transformers, network.cls)
    with META:
        built = cls(**network.config) if is_of_diffusers else cls(cls.config_class(**network.config))
    # Of some, diffusers keeps norms and the like in float32; transformers does so for float16 alone.
    kept = (getattr(built, "_keep_in_fp32_modules", None) or ()) if is_of_diffusers else ()
    for name, tensor in (*built.named_parameters(), *built.named_buffers()):
        narrow = tensor.is_floating_point() and not set(kept).intersection(name.split("."))
        tensor.data = tensor.data.to(META, dtype if narrow else None)
    if quantization is not None:
        quantize(built, quantization)
    return built.requires_grad_(False).eval()


def quantize(network: Any, kind: str) -> None:
    """Puts layers that take the memory of quantised ones in the place of those that the libraries quantise."""
    kept = tuple(getattr(network, "_keep_in_fp32_modules", None) or ())
    if isinstance(network, diffusers.ModelMixin):
        stays = {name for name, _ in network.named_modules() if any(f"{part}." in f"{name}." for part in kept)}
    else:  # transformers leaves out the last layer; for torchao it overlooks what should be kept in single precision
        last = [name for name, _ in network.named_parameters()][-1].removesuffix(".weight")
        named = kept if kind == "nf4" else ()
        stays = {name for name, _ in network.named_modules() if name == last or name.endswith(named)}
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)}
    for name, layer in layers.items():
        if name not in stays:
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, QUANTIZED[kind](layer))


class _Int8(torch.nn.Linear):
    """As torchao's weight-only int8: a number for each row; the backward pass keeps the weight as it is multiplied."""

    scales: Tensor

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device=META)
        self.weight = torch.nn.Parameter(torch.empty(layer.weight.shape, dtype=torch.int8, device=META), False)
        self.register_buffer("scales", torch.empty(layer.out_features, device=META))
        self.register_buffer("zero_points", torch.empty(layer.out_features, dtype=torch.int8, device=META))
        self.bias = layer.bias

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output."""
        product = torch.mm(values.reshape(-1, values.shape[-1]), self.weight.t().to(values.dtype))
        output = (product * self.scales.to(values.dtype)).reshape(*values.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


class _Nf4(torch.nn.Linear):
    """As bitsandbytes' nf4: two weights in a byte, a number for each 64; the weight is made twice and never kept."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device=META)
        count = layer.weight.numel()
        packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device=META)
        self.weight = torch.nn.Parameter(packed, False)
        self.register_buffer("scales", torch.empty(-(-count // 64) + 16, device=META))  # and the table of 16 levels
        self.bias = layer.bias

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output."""
        output: Tensor = _Dequantized.apply(values, self.out_features, self.bias)
        return output


class _Dequantized(torch.autograd.Function):
    """A product with a weight that is made for it, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: Any, features: Any, bias: Any) -> Any:
        ctx.shape = features, values.shape[-1]
        return torch.nn.functional.linear(values, values.new_empty(ctx.shape), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None


QUANTIZED: Mapping[str, Callable[[torch.nn.Linear], torch.nn.Linear]] = {"nf4": _Nf4, "int8": _Int8}


def pipeline(model: Model, dtype: torch.dtype, quantization: Mapping[str, str] | None = None) -> Any:
    """The model's pipeline on the meta device, its text encoders left out: they do not take part in an update.

    Arguments:
        quantization: component -> kind.
    """
    kinds = quantization or {}
    cls = getattr(diffusers, model.pipeline)
    scheduler, config = model.scheduler
    parts: dict[str, Any] = dict.fromkeys((*model.without, *(name for name in model.networks if "encoder" in name)))
    drawing = {name: network for name, network in model.networks.items() if "encoder" not in name}
    parts |= {name: build_network(network, dtype, kinds.get(name)) for name, network in drawing.items()}
    more = {
        diffusers.StableDiffusionXLPipeline: {"add_watermarker": False},
        diffusers.StableDiffusionPipeline: {"requires_safety_checker": False},
    }.get(cls, {})
    return cls(scheduler=getattr(diffusers, scheduler)(**config), **parts, **more)


def embeddings(model: Model, batch: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the text encoders would give for `batch` prompts."""
    return {name: torch.empty(batch, *shape, dtype=dtype, device=META) for name, shape in model.embeddings.items()}


@contextmanager
def without_numbers(pipe: Any) -> Iterator[None]:
    """What a pipeline asks of its tensors' numbers is answered otherwise inside: the scheduler's place in its schedule.

    Schedules are made on the CPU, as numpy needs it, and only the timesteps go to the meta device, where no step can
    be looked up by its timestep: each is taken for the first, whose shapes are those of all.
    """
    scheduler = pipe.scheduler

    def set_timesteps(original: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        original(*args, device="cpu", **kwargs)
        scheduler.timesteps = scheduler.timesteps.to(pipe._execution_device)

    with (
        seams.replaced(scheduler, "set_timesteps", set_timesteps),
        seams.replaced(scheduler, "index_for_timestep", _first_place),
    ):
        yield


def _first_place(original: Any, *args: Any, **kwargs: Any) -> int:
    return 0


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Attention on the meta device keeps inside what a fused kernel keeps; other devices are left alone."""

    def on_attention(
        original: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if query.device != META:
            return original(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None or kwargs.get("enable_gqa"):
            raise NotImplementedError("what a fused kernel keeps is written down for attention without mask and groups")
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    # Not a TorchFunctionMode: a checkpoint that recomputes in the backward pass is outside of it.
    with (
        seams.replaced(torch.nn.functional, "scaled_dot_product_attention", on_attention),
        seams.replaced(torch, "is_autocast_enabled", _no_autocast_on_meta),
        _Remembered(),
    ):
        yield


class _Remembered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the sizes of an operation's output on the meta device once for all inputs of the same sizes.

    PyTorch finds them by Python code, which takes most of the time of a count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's output, or empty tensors like it."""
        values, tree = tree_flatten((args, kwargs or {}))
        key = None if _has_alias(func) else (func, tree, *map(_sizes, values))
        if key is None or not any(isinstance(value, Tensor) and value.device == META for value in values):
            return func(*args, **(kwargs or {}))
        if key not in self.known:
            output = func(*args, **(kwargs or {}))
            self.known[key] = tree_map_only(Tensor, _sizes, output)
            return output
        return tree_map_only(_Sizes, _empty, self.known[key])


@dataclass(frozen=True)
class _Sizes:
    """What a tensor on the meta device is."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Sizes(value.shape, value.stride(), value.dtype, value.device)
    return type(value), value  # 1, 1.0 and True are equal


def _empty(found: _Sizes) -> Tensor:
    return torch.empty_strided(found.shape, found.stride, dtype=found.dtype, device=found.device)


@cache
def _has_alias(func: Any) -> bool:
    """Whether an operation changes what it is given, or returns a view of it."""
    schema = func._schema
    return any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))


def _no_autocast_on_meta(original: Any, *device_type: str) -> bool:
    """PyTorch raises for the meta device."""
    return META.type not in device_type and bool(original(*device_type))


@contextmanager
def tiles_once(network: Any, decode: str | None) -> Iterator[None]:
    """Of the tiles that `decode: tiles` goes through, one of each shape is computed inside, forward and backward.

    The others give pixels and gradients of the right size and nothing else: never are two of them in memory, so that
    each takes what the first of its shape took. A video of 81 frames has 945 calls of its decoder otherwise. Other
    devices are left alone.

    Arguments:
        network: a decoder.
        decode: how it is gone back through; but for "tiles" nothing changes.
    """
    if decode != "tiles":
        yield
        return
    outputs: dict[Any, list[tuple[torch.Size, torch.dtype]]] = {}  # of a tile's calls
    known: Iterator[tuple[torch.Size, torch.dtype]] | None = None
    new: list[tuple[torch.Size, torch.dtype]] = []

    def on_call(forward: Any, tile: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal known, new
        if tile.device != META:
            return forward(tile, *args, **kwargs)
        handed = features_in(args, kwargs)
        if all(feature is None for values in handed for feature in values):  # a tile begins
            key = tile.shape, torch.is_grad_enabled()
            known = iter(outputs[key]) if key in outputs else None
            if known is None:
                new = outputs[key] = []
        if known is None:
            output = forward(tile, *args, **kwargs)
            new.append((output.shape, output.dtype))
            return output
        for values in handed:
            values[:] = [tile] * len(values)  # something is handed on to the next call
        return _Blank.apply(tile, *next(known))

    with seams.replaced(network.decoder, "forward", on_call):
        yield


class _Blank(torch.autograd.Function):
    """A tensor of this shape, and in the backward pass one of the input's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shape: Any, dtype: Any) -> Tensor:
        ctx.shape, ctx.dtype = values.shape, values.dtype
        return values.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient.new_empty(ctx.shape, dtype=ctx.dtype), None, None
