"""The image and video processors of transformers with a gradient: come here to feed any of its models with images.

A processor is written for Pillow images, and cuts the gradient. Here its own code runs on floats that have the whole
levels of 8-bit images. One step differs between the two: bytes are resized to bytes. Its value is taken from the resize
of bytes that the processor's own call does, and its gradient from the same filter on floats.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from draft_core.errors import DraftError, raised

AGREEMENT = 1e-6  # largest difference from the processor's own call, in units of the largest value, 1 at least
CHANNELS_FIRST = {"input_data_format": "channels_first", "return_tensors": "pt"}

# Processor -> (size of what it was called with, further arguments) -> whether it resizes bytes; only what was compared.
_compared: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], bool]] = weakref.WeakKeyDictionary()


def through(processor: Any, images: torch.Tensor, **call: Any) -> Any:
    """What a processor of transformers makes of images, equal to its own call on Pillow images, with a gradient.

    It is the processor's own `BatchFeature`, its tensors on the device of the images: `pixel_values`, and whatever else
    that processor returns, such as `image_grid_thw`. It is computed on the CPU, as for Pillow images. At the first
    call for each size of images, noise of that size is compared with the processor's own call.

    Arguments:
        processor: an image processor with its torchvision backend, the default of transformers 5, or a video processor.
        images: (N, 3, H, W) in [0, 1], or for a video processor (N, F, 3, H, W). Levels between two of 8 bits are
            rounded, straight through; levels outside are clamped, and get no gradient.
        call: further arguments of the processor's call.

    Raises:
        DraftError: naming the processor, if its own call cannot be repeated with a gradient: it has another backend,
            fails on tensors, cuts the gradient, or gives other values.
    """
    key = (tuple(images.shape[1:]), repr(sorted(call.items())))
    compared = _compared.setdefault(processor, {})
    if key not in compared:
        with torch.inference_mode(False):  # where nothing could be given a gradient
            compared[key] = _compare(processor, images.shape[1:], call)
    levels = _whole_levels(images.float().cpu())
    return _on(_call(processor, levels, call, bytes_are_resized=compared[key]), images.device)


def _whole_levels(images: torch.Tensor) -> torch.Tensor:
    """Whole levels from 0 to 255; those inside have a gradient, black and white included."""
    levels = images * 255
    # torch.clamp gives the bounds themselves a gradient in some versions only
    levels = torch.where((levels >= 0) & (levels <= 255), levels, levels.detach().clamp(0, 255))
    return _straight_through((levels + 0.5).floor(), levels)


def _straight_through(values: torch.Tensor, smooth: torch.Tensor) -> torch.Tensor:
    """The values, exactly, with the gradient of `smooth`."""
    return values.detach() + (smooth - smooth.detach())


def _call(processor: Any, levels: torch.Tensor, call: Mapping[str, Any], *, bytes_are_resized: bool) -> Any:
    name = "images" if levels.ndim == 4 else "videos"
    with _Resizes(bytes_are_resized):
        return processor(**{name: list(levels)}, **CHANNELS_FIRST, **call)


class _Resizes(TorchFunctionMode):
    """A context, of this thread alone, that notes what is resized, and may round the results as bytes are.

    Arguments:
        round_as_bytes: whether the values of a resize of whole levels are those of a resize of bytes.
    """

    def __init__(self, round_as_bytes: bool = False) -> None:
        super().__init__()
        self.round_as_bytes = round_as_bytes
        self.bytes_seen: set[bool] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func is not torch.nn.functional.interpolate:
            return result
        source = args[0] if args else given["input"]
        if not self.round_as_bytes:
            self.bytes_seen.add(bool((source == source.round()).all()))
            return result
        return _straight_through(_resized_bytes(source, result, given), result)


def _resized_bytes(levels: torch.Tensor, resized: torch.Tensor, given: Mapping[str, Any]) -> torch.Tensor:
    """What torchvision makes of the levels as bytes, in the size and with the filter of a call of `interpolate`."""
    from torchvision.transforms.v2 import InterpolationMode  # who has such processors has torchvision
    from torchvision.transforms.v2.functional import resize

    mode, antialias = InterpolationMode(given.get("mode", "nearest")), given.get("antialias", False)
    small: torch.Tensor = resize(
        levels.detach().round().to(torch.uint8), list(resized.shape[-2:]), interpolation=mode, antialias=antialias
    )
    return small.to(resized.dtype)


# Whether the processor can be trusted


def _compare(processor: Any, shape: Sequence[int], call: Mapping[str, Any]) -> bool:
    """Whether the processor resizes bytes, found by its own call on noise, which its call on levels must equal."""
    name = type(processor).__name__
    if getattr(processor, "backend", "torchvision") != "torchvision":
        raise _refusal(name, f"it works with the backend {processor.backend!r}", 'load it with backend="torchvision"')
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).mul(255).round()
    notes = _Resizes()
    try:
        with torch.no_grad(), notes:
            own = processor(
                **{"images" if noise.ndim == 4 else "videos": _to_pillow(noise)}, return_tensors="pt", **call
            )
    except Exception as error:
        raise _refusal(name, f"its own call on Pillow images raised {raised(error)}") from error
    if len(notes.bytes_seen) > 1:
        raise _refusal(name, "it resizes both bytes and fractions of them")
    bytes_are_resized = True in notes.bytes_seen
    with torch.enable_grad():
        levels = noise.requires_grad_()
        try:
            ours = _call(processor, levels, call, bytes_are_resized=bytes_are_resized)
        except Exception as error:
            raise _refusal(name, f"on tensors it raised {raised(error)}") from error
        _require_same(name, own, ours)
        sums = [tensor.sum() for tensor in _tensors(ours) if tensor.requires_grad]
        if not sums or not torch.autograd.grad(torch.stack(sums).sum(), levels)[0].any():
            raise _refusal(name, "it cuts the gradient")
    return bytes_are_resized


def _to_pillow(levels: torch.Tensor) -> list[Any]:
    if levels.ndim > 4:
        return [_to_pillow(frames) for frames in levels]
    return [Image.fromarray(image.permute(1, 2, 0).to(torch.uint8).numpy()) for image in levels]


def _require_same(name: str, own: Any, ours: Any) -> None:
    """Refuses a processor whose values on levels are not those of its own call."""
    if _names(own) != _names(ours) or [t.shape for t in _tensors(own)] != [t.shape for t in _tensors(ours)]:
        raise _refusal(name, "on tensors it returns other shapes than on Pillow images")
    for wanted, found in zip(_tensors(own), _tensors(ours), strict=True):
        if not wanted.numel():
            continue
        wanted, found = wanted.double(), found.detach().double()
        difference = float((wanted - found).abs().max() / wanted.abs().max().clamp(min=1))
        if not difference <= AGREEMENT:
            raise _refusal(name, f"on tensors its values differ from those on Pillow images by {difference:.2g}")


def _refusal(name: str, why: str, remedy: str = "use a model with another processor") -> DraftError:
    return DraftError(f"cannot be followed with a gradient: {why}", where=name, next=remedy)


def _names(features: Any) -> list[str]:
    return list(features) if hasattr(features, "items") else []


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of what a processor returned, in its order; lists of them may be nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "items"):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _on(features: Any, device: torch.device) -> Any:
    """The features with all their tensors on a device."""
    if isinstance(features, torch.Tensor):
        return features.to(device)
    if isinstance(features, (list, tuple)):
        return type(features)(_on(part, device) for part in features)
    if hasattr(features, "items"):
        for name in list(features):
            features[name] = _on(features[name], device)
    return features
