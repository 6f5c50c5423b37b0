"""What classifiers do to an image before they look at it, as data, and applied with a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from draft_core.errors import DraftError
from draft_core.rewards.images import (
    FILTERS,
    center_crop,
    normalize,
    resize_and_crop_like_pil,
    resize_like_pil,
    resize_shortest_like_pil,
)

# Processors of transformers that resize, crop and normalise, and do nothing else to an image.
_PLAIN_PROCESSORS = ("Beit", "Bit", "CLIP", "DeiT", "MobileNetV1", "MobileNetV2", "Siglip", "ViT")
_SQUASHED_FROM = 384  # ConvNeXT's processor neither keeps proportions nor crops from this size on
_PIL_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Image.Resampling


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise.

    Arguments:
        size: (height, width) to resize to whatever the proportions, or the length of the shortest side.
        filter: one of `draft_core.rewards.images.FILTERS`.
        crop: side of the central square, None for no crop.
        crop_rounding: where a crop with an odd margin starts, as in `draft_core.rewards.images.center_crop`.
        mean: per channel.
        std: per channel.
    """

    size: int | tuple[int, int]
    filter: str
    crop: int | None
    crop_rounding: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        shortest = self.size if isinstance(self.size, int) else min(self.size)
        if self.crop is not None and self.crop > shortest:
            raise DraftError(
                f"it crops {self.crop} pixels out of {shortest}: it pads, which is not supported",
                where="source, preprocessing",
                next="choose another classifier",
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise DraftError(
                f"it has {len(self.mean)} channels, not 3", where="source, preprocessing", next="choose another one"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """The network's input for images (B, 3, H, W) float32 in [0, 1], in the levels that Pillow would give."""
        return normalize(self._resized(images), self.mean, self.std)

    def _resized(self, images: Tensor) -> Tensor:
        if isinstance(self.size, int):
            if self.crop is None:
                return resize_shortest_like_pil(images, self.size, filter=self.filter)
            return resize_and_crop_like_pil(
                images, self.size, self.crop, rounding=self.crop_rounding, filter=self.filter
            )
        images = resize_like_pil(images, *self.size, filter=self.filter)
        return images if self.crop is None else center_crop(images, self.crop, rounding=self.crop_rounding)


def of_timm(config: Mapping[str, Any]) -> Preprocessing:
    """As `timm.data.create_transform` does, from what `timm.data.resolve_model_data_config` says.

    Raises:
        DraftError: if it pads, or its input is not a square.
    """
    _, height, width = config["input_size"]
    if height != width or config["crop_mode"] not in ("center", "squash"):
        raise DraftError(
            f"its input is {height} x {width}, crop mode {config['crop_mode']!r}; known: squares, center and squash",
            where="source, preprocessing",
            next="choose another classifier",
        )
    size = math.floor(height / config["crop_pct"])
    return Preprocessing(
        size=(size, size) if config["crop_mode"] == "squash" else size,
        filter=_known_filter(config["interpolation"]),
        crop=height,
        crop_rounding="half-even",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def of_torchvision(transforms: Any) -> Preprocessing:
    """As the classification transforms of torchvision's published weights do to a PIL image."""
    (size,), (crop,) = transforms.resize_size, transforms.crop_size
    return Preprocessing(
        size=size,
        filter=_known_filter(transforms.interpolation.value),
        crop=crop,
        crop_rounding="half-even",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def of_transformers(name: str, settings: Mapping[str, Any]) -> Preprocessing:
    """As the image processor of this class name and these settings does on its PIL backend.

    Raises:
        DraftError: if the processor is not known to do only what can be reproduced here.
    """
    kind = name.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor")
    if kind not in (*_PLAIN_PROCESSORS, "ConvNext"):
        known = ", ".join((*_PLAIN_PROCESSORS, "ConvNext", "TimmWrapper"))
        raise DraftError(f"{name} is not supported", where="source, preprocessing", next=f"known: {known}")
    unusual = [
        field
        for field, usual in {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": False}.items()
        if settings.get(field) not in (usual, None)
    ]
    if unusual or not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255):
        field = (unusual or ["rescale_factor"])[0]
        raise DraftError(
            f"{name} with {field}={settings[field]} is not supported", where="source, preprocessing", next="change it"
        )
    filter_number = int(settings["resample"])
    size, crop = _convnext_size(settings) if kind == "ConvNext" else _plain_size(settings)
    return Preprocessing(
        size=size,
        filter=_known_filter(_PIL_FILTERS.get(filter_number, f"Pillow's number {filter_number}")),
        crop=crop,
        crop_rounding="floor",
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
    )


def _plain_size(settings: Mapping[str, Any]) -> tuple[int | tuple[int, int], int | None]:
    size, crop = _given(settings["size"]), None
    if settings.get("do_center_crop"):
        sides = set(_given(settings["crop_size"]).values())
        if len(sides) != 1:
            raise _unknown_size("crop_size", settings)
        crop = sides.pop()
    if size.keys() == {"height", "width"}:
        return (size["height"], size["width"]), crop
    if size.keys() == {"shortest_edge"}:
        if crop is None:  # images of any proportions would reach the network
            raise _unknown_size("size", settings)
        return size["shortest_edge"], crop
    raise _unknown_size("size", settings)


def _convnext_size(settings: Mapping[str, Any]) -> tuple[int | tuple[int, int], int | None]:
    size = _given(settings["size"])
    if size.keys() != {"shortest_edge"} or settings.get("do_center_crop"):
        raise _unknown_size("size", settings)
    side = size["shortest_edge"]
    if side >= _SQUASHED_FROM:
        return (side, side), None
    return int(side / settings["crop_pct"]), side


def _given(size: Mapping[str, int | None]) -> dict[str, int]:
    return {name: int(length) for name, length in dict(size).items() if length is not None}


def _known_filter(name: str) -> str:
    if name not in FILTERS:
        raise DraftError(
            f"it resizes with the filter {name!r}; known: {', '.join(FILTERS)}", where="source, preprocessing"
        )
    return name


def _unknown_size(field: str, settings: Mapping[str, Any]) -> DraftError:
    return DraftError(
        f"{field}={settings[field]} leads to no input of fixed size",
        where="source, preprocessing",
        next="choose another classifier",
    )
