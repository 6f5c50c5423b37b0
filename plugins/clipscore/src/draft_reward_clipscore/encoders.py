"""The two encoders of a CLIP, from either library: images and a prompt in, unnormalised embeddings out."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from draft_core.errors import DraftError
from draft_core.rewards.images import (
    CLIP_MEAN,
    CLIP_STD,
    FILTERS,
    normalize,
    resize_and_crop_like_pil,
    resize_like_pil,
)
from draft_core.rewards.weights import (
    PUBLISHED,
    RANDOM,
    explained,
    load_pretrained,
    load_tokenizer,
    locate_model,
    seeded,
)
from draft_reward_clipscore import ClipScoreConfig
from draft_reward_clipscore.tiny import save_tiny

WHERE = "reward 'clipscore'"
TRANSFORMERS_DEFAULT = "openai/clip-vit-base-patch32"
PILLOW_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # the numbers in a preprocessor_config.json

# For tests, with CLIP's whole vocabulary.
TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Preparation:
    """How a CLIP wants its pixels.

    Arguments:
        shortest: what the shortest side is resized to; None where the image is squashed into the square.
        side: of the square that the encoder takes.
        rounding: as in `draft_core.rewards.images.center_crop`.
        filter: as in `draft_core.rewards.images.resize_like_pil`.
    """

    side: int
    shortest: int | None
    rounding: str
    filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, side, side) of images (B, 3, H, W)."""
        if self.shortest is None:
            square = resize_like_pil(images, self.side, self.side, filter=self.filter)
        else:
            square = resize_and_crop_like_pil(
                images, self.shortest, self.side, rounding=self.rounding, filter=self.filter
            )
        return normalize(square, self.mean, self.std)


class Encoder(torch.nn.Module, ABC):
    """A CLIP in the configured precision."""

    def __init__(self, clip: Any, tokenizer: Any, preparation: Preparation, dtype: torch.dtype) -> None:
        super().__init__()
        self.clip, self.tokenizer, self.preparation, self.dtype = clip.to(dtype), tokenizer, preparation, dtype

    @abstractmethod
    def images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W) float32."""

    @abstractmethod
    def text(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (1, D); what does not fit of the prompt is cut off."""


class OpenClip(Encoder):
    """A CLIP of open_clip."""

    def images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D)."""
        features: Tensor = self.clip.encode_image(self.preparation(images).to(self.dtype))
        return features

    def text(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (1, D)."""
        features: Tensor = self.clip.encode_text(self.tokenizer([prompt]).to(device))
        return features


class Transformers(Encoder):
    """A CLIPModel of transformers. Its `get_*_features` are avoided: they return other things in version 4 and 5."""

    def images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D)."""
        pixels = self.preparation(images).to(self.dtype)
        features: Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return features

    def text(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (1, D)."""
        limit = self.clip.config.text_config.max_position_embeddings
        tokens = self.tokenizer([prompt], truncation=True, max_length=limit, return_tensors="pt").to(device)
        outputs = self.clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        features: Tensor = self.clip.text_projection(outputs.pooler_output)
        return features


def load_encoder(config: ClipScoreConfig) -> Encoder:
    """The encoder that the config names.

    Raises:
        DraftError: if there is none, or it prepares images in a way that is not supported.
    """
    return load_open_clip(config) if config.library == "open_clip" else load_transformers(config)


def load_open_clip(config: ClipScoreConfig) -> Encoder:
    """A CLIP of open_clip, with its own tokenizer and preparation."""
    dtype = getattr(torch, config.dtype)
    if config.model == "tiny":
        _check_tiny(config)
        with seeded(config.seed):
            clip = open_clip.CLIP(**TINY)
        return OpenClip(clip, open_clip.tokenize, preparation_of_open_clip({"size": 224}), dtype)
    _check_open_clip_name(config)
    pretrained = None if config.weights == RANDOM else config.weights
    what = f"open_clip's {config.model} {config.weights}"
    with explained(what, where=WHERE, option="weights"), seeded(config.seed):
        clip = open_clip.create_model(config.model, pretrained=pretrained, require_pretrained=pretrained is not None)
        tokenizer = open_clip.get_tokenizer(config.model)
    return OpenClip(clip, tokenizer, preparation_of_open_clip(open_clip.get_model_preprocess_cfg(clip)), dtype)


def load_transformers(config: ClipScoreConfig) -> Encoder:
    """A CLIPModel of transformers, with its own tokenizer and preparation."""
    with model_folder(config) as name:
        clip = load_pretrained(CLIPModel, name, where=WHERE, option="model")
        tokenizer = load_tokenizer(CLIPTokenizerFast, name, where=WHERE, option="model")
        with explained(f"the image processor {name}", where=WHERE, option="model", location=name):
            settings, _ = CLIPImageProcessor.get_image_processor_dict(name)
    return Transformers(clip, tokenizer, preparation_of_transformers(settings), getattr(torch, config.dtype))


@contextmanager
def model_folder(config: ClipScoreConfig) -> Iterator[str]:
    """What transformers loads from: a name on the hub, or a folder; that of the tiny model is there for a moment."""
    fields = type(config).model_fields
    if config.model == "tiny":
        _check_tiny(config)
        with TemporaryDirectory() as folder:
            save_tiny(Path(folder), config.seed)
            yield folder
        return
    if config.weights != fields["weights"].default:
        raise DraftError(
            "weights are chosen for open_clip only", where=WHERE, next="name the whole model in the field model"
        )
    source = PUBLISHED if config.model == fields["model"].default else config.model
    yield locate_model(source, TRANSFORMERS_DEFAULT, where=WHERE, option="model")


def preparation_of_open_clip(settings: Mapping[str, Any]) -> Preparation:
    """The preparation that an open_clip model's preprocessing settings ask for."""
    size, mode = settings["size"], settings.get("resize_mode", "shortest")
    sides = {size} if isinstance(size, int) else set(size)
    filter = settings.get("interpolation", "bicubic")
    if len(sides) != 1 or mode not in ("shortest", "squash") or filter not in FILTERS:
        raise _unsupported(settings)
    (side,) = sides
    return Preparation(
        side=side,
        shortest=side if mode == "shortest" else None,
        rounding="half-even",
        filter=filter,
        mean=tuple(settings.get("mean", CLIP_MEAN)),
        std=tuple(settings.get("std", CLIP_STD)),
    )


def preparation_of_transformers(settings: Mapping[str, Any]) -> Preparation:
    """The preparation that a preprocessor_config.json asks for; what it leaves out is CLIPImageProcessor's default."""
    size, crop = settings.get("size", 224), settings.get("crop_size", 224)
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    sides = {crop} if isinstance(crop, int) else {crop["height"], crop["width"]}
    filter = PILLOW_FILTERS.get(int(settings.get("resample", 3)))
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    if shortest is None or len(sides) != 1 or filter is None or not all(settings.get(step, True) for step in steps):
        raise _unsupported(settings)
    (side,) = sides
    return Preparation(
        side=side,
        shortest=shortest,
        rounding="floor",
        filter=filter,
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
    )


def _check_tiny(config: ClipScoreConfig) -> None:
    if config.weights != RANDOM:
        raise DraftError("the tiny model has no published weights", where=WHERE, next=f"set weights to {RANDOM}")


def _check_open_clip_name(config: ClipScoreConfig) -> None:
    """Refuses what open_clip does not know, and weights trained with another activation than the model's."""
    known = open_clip.list_models()
    if config.model not in known:
        near = difflib.get_close_matches(config.model, known, n=1)
        raise DraftError(
            f"open_clip has no model {config.model!r}",
            where=f"{WHERE}, model",
            next=f"did you mean {near[0]!r}?" if near else "see open_clip.list_models()",
        )
    if config.weights == RANDOM or Path(config.weights).is_file():
        return
    settings = open_clip.get_pretrained_cfg(config.model, config.weights)
    if not settings:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise DraftError(
            f"open_clip has no weights {config.weights!r} for {config.model}",
            where=f"{WHERE}, weights",
            next=f"give a local file, or a tag (known: {tags})",
        )
    wanted, built = (
        "QuickGELU" if source.get("quick_gelu", False) else "GELU"
        for source in (settings, open_clip.get_model_config(config.model))
    )
    if wanted != built:
        raise DraftError(
            f"the weights {config.weights!r} were trained with {wanted}, but {config.model} is built with {built}",
            where=f"{WHERE}, model",
            next="use its twin with or without -quickgelu",
        )


def _unsupported(settings: Mapping[str, Any]) -> DraftError:
    return DraftError(
        f"this model prepares its images in a way that is not supported: {dict(settings)}",
        where=f"{WHERE}, model",
        next="choose a model that resizes to a square, or crops one from the centre",
    )
