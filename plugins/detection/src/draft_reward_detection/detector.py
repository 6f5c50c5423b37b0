"""OWL-ViT of transformers: images and queries in, one logit for each box and query out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizerFast, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor

from draft_core import load_catalog
from draft_core.errors import DraftError
from draft_core.rewards import TextFeatureCache
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize, resize_like_pil
from draft_core.rewards.weights import (
    PUBLISHED,
    RANDOM,
    explained,
    load_pretrained,
    load_tokenizer,
    locate_model,
    seeded,
)
from draft_reward_detection import TOKENS, DetectorConfig, too_long

MODEL, MEGABYTES = "google/owlvit-base-patch32", 613
_ALIAS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
BICUBIC = 3  # Pillow's number, in a preprocessor_config.json

# For tests: the published shape at a thousandth of the size, with 16 boxes. Texts are read byte by byte.
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_MARKS = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 0, "vocab_size": 514}
TINY: dict[str, Any] = {
    "projection_dim": 32,
    "vision_config": {**_LAYERS, "image_size": 28, "patch_size": 7},
    "text_config": {**_LAYERS, **_MARKS, "max_position_embeddings": TOKENS},
}


class Detector(torch.nn.Module):
    """An OWL-ViT in the configured precision.

    Minderer et al. 2022, "Simple Open-Vocabulary Object Detection with Vision Transformers", arXiv 2205.06230.

    Raises:
        DraftError: if the model is missing, does not fit, or prepares images otherwise than OWL-ViT does.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.kind = config.kind
        self.dtype = getattr(torch, config.dtype)
        self.tokenizer = load_query_tokenizer(config)
        self.model = load_model(config).to(self.dtype)
        self.side: int = self.model.config.vision_config.image_size
        self.memory = TextFeatureCache()

    def forward(self, images: Tensor, queries: Sequence[Sequence[str]]) -> Tensor:
        """Logits (B, boxes, Q) float32 of images (B, 3, H, W) in [0, 1], for Q queries of each.

        Raises:
            RewardError: if a query has more tokens than the model reads.
        """
        square = resize_like_pil(images, self.side, self.side)
        pixels = normalize(square, CLIP_MEAN, CLIP_STD).to(self.dtype)
        boxes = self.model.image_embedder(pixel_values=pixels)[0].flatten(1, 2)
        flat = [query for of_image in queries for query in of_image]
        texts = self.memory(flat, lambda query: self.text_features(query, images.device), images.device)
        logits: Tensor = self.model.class_predictor(boxes, texts.reshape(len(images), -1, texts.shape[1]))[0]
        return logits.float()

    def text_features(self, query: str, device: torch.device) -> Tensor:
        """Embedding (D,) of a query; the class head brings it to unit length."""
        tokens = self.tokens(query).to(device)
        # Not `get_text_features`: what that returns differs between transformers 4 and 5.
        owlvit = self.model.owlvit
        outputs = owlvit.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        features: Tensor = owlvit.text_projection(outputs.pooler_output)
        return features[0]

    def tokens(self, query: str) -> Any:
        """Token numbers and their mask, (1, 16) each, padded.

        Raises:
            RewardError: if the query has more tokens.
        """
        tokens = self.tokenizer([query], padding="max_length", max_length=TOKENS, return_tensors="pt")
        if tokens["input_ids"].shape[1] > TOKENS:
            raise too_long(query, kind=self.kind)
        return tokens


def load_model(config: DetectorConfig) -> Any:
    """The model in float32."""
    if config.weights == RANDOM:
        with seeded(config.seed):
            return OwlViTForObjectDetection(OwlViTConfig(**TINY))
    where = f"reward {config.kind!r}"
    name = locate(config.weights, where=where)
    megabytes = MEGABYTES if name == MODEL else None
    model = load_pretrained(OwlViTForObjectDetection, name, megabytes=megabytes, where=where, option="weights")
    with explained(f"the image processor {name}", where=where, option="weights", location=name):
        settings, _ = OwlViTImageProcessor.get_image_processor_dict(name)
    check_preparation(settings, model.config.vision_config.image_size, where=f"{where}, weights")
    return model


def load_query_tokenizer(config: DetectorConfig) -> Any:
    """CLIP's tokenizer, as the published processor has it; for random weights one that joins no bytes."""
    if config.weights == RANDOM:
        return byte_tokenizer()
    where = f"reward {config.kind!r}"
    name = locate(config.weights, where=where)
    return load_tokenizer(CLIPTokenizerFast, name, where=where, option="weights")


def locate(weights: str, *, where: str) -> str:
    """A name on the hub, or the folder of a path or of a detector that an installed distribution carries.

    Raises:
        DraftError: if there is none.
    """
    catalog = load_catalog()
    if weights in catalog.detectors:
        return str(catalog.detectors[weights].spec.folder)
    if _ALIAS.fullmatch(weights) and weights != PUBLISHED and not Path(weights).is_dir():
        raise catalog.unknown("detector", weights, {*catalog.detectors, PUBLISHED, RANDOM}, where=f"{where}, weights")
    return locate_model(weights, MODEL, where=where, option="weights")


def check_preparation(settings: Mapping[str, Any], side: int, *, where: str) -> None:
    """Refuses a preprocessor_config.json that asks for anything but OWL-ViT's squashed bicubic square.

    Raises:
        DraftError: that names the setting.
    """
    size = settings.get("size", side)
    sides = {size} if isinstance(size, int) else set(size.values())
    wanted: dict[str, Any] = {
        "do_resize": True,
        "do_center_crop": False,
        "do_normalize": True,
        "resample": BICUBIC,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    other = [name for name, value in wanted.items() if not _same(settings.get(name, value), value)]
    if sides != {side}:
        other.append("size")
    if other:
        raise DraftError(
            f"this model prepares its images with {other[0]} = {settings[other[0]]}",
            where=where,
            next=f"take an OWL-ViT that squashes them to {side} x {side} pixels, bicubic, with CLIP's mean and std",
        )


def _same(found: Any, wanted: Any) -> bool:
    return bool(list(found) == list(wanted) if isinstance(wanted, tuple) else found == wanted)


def byte_tokenizer() -> Any:
    """A CLIP tokenizer that joins no bytes, and so needs no vocabulary; "!" fills up, as in the published one."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that stand for themselves in CLIP's
    letters = [chr(code) for code in codes] + [chr(256 + place) for place in range(256 - len(codes))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        vocabulary = {token: place for place, token in enumerate(tokens)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder, pad_token="!")
