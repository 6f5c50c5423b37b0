"""Makes an OWL-ViT of the small CLIP: its towers, with the detector's two heads."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    CLIPModel,
    CLIPTokenizer,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from draft_core.rewards.images import resize_like_pil

from ..vae import autocast

INPUT = 96  # pixels that a collage is enlarged to, so that its things come near the size at which the CLIP learnt them
TOKENS = 16  # that OWL-ViT's processor gives its text tower
PAD = "!"  # number 0, as in OWL-ViT's tokenizer: its tower takes the highest number for the end of a text
MEAN, STD = OwlViTImageProcessor.image_mean, OwlViTImageProcessor.image_std
SCALE, SHIFT = 15.0, -0.45  # of the cosines at first: a probability of a hundredth for a cosine of .15

EXACT = "float32-sdpa"  # the attention that a training computes in


def empty(clip: CLIPModel) -> OwlViTForObjectDetection:
    """The shape: the towers of `clip` for 16 tokens and INPUT x INPUT pixels, one box for each patch."""
    text, vision = clip.config.text_config.to_dict(), clip.config.vision_config.to_dict()
    text |= {"max_position_embeddings": TOKENS, "pad_token_id": 0}
    text["projection_dim"] = vision["projection_dim"] = text["hidden_size"]  # the class head compares in this width
    vision["image_size"] = INPUT
    for part in (text, vision):
        part.pop("model_type")
    return OwlViTForObjectDetection(
        OwlViTConfig(text_config=text, vision_config=vision, projection_dim=text["hidden_size"])
    )


def build(start: Path) -> OwlViTForObjectDetection:
    """The same with the CLIP's weights in `start`; the text tower with its projection stays frozen, so that names stay
    where the CLIP has them, and so does what only serves to compare whole images."""
    clip = CLIPModel.from_pretrained(start, dtype=torch.float32)
    model = empty(clip)
    state = {k.replace("pre_layrnorm", "pre_layernorm"): v for k, v in clip.state_dict().items()}  # CLIP's own spelling
    width = model.config.projection_dim
    for name in ("text_projection.weight", "visual_projection.weight"):
        state[name] = F.pad(state[name], (0, 0, 0, width - len(state[name])))
    positions = "text_model.embeddings.position_embedding.weight"
    state[positions] = state[positions][:TOKENS]
    _fit_images(state)
    model.owlvit.load_state_dict(state)
    _start_heads(model)
    model.requires_grad_(False)
    heads = (model.class_head, model.box_head, model.layer_norm)
    for part in (model.owlvit.vision_model, *heads):
        part.requires_grad_(True)
    return model


def _start_heads(model: OwlViTForObjectDetection) -> None:
    """Small random weights, for transformers' own are of deviation 1; nothing is found, and boxes are their patches."""
    for head in (model.class_head, model.box_head):
        for module in head.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    started = {model.class_head.logit_scale: SCALE - 1, model.class_head.logit_shift: SHIFT, model.box_head.dense2: 0.0}
    for layer, value in started.items():
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)


def _fit_images(state: dict[str, Tensor]) -> None:
    """Bring the patches to OWL-ViT's mean and deviation of pixels, exactly, and the positions to INPUT pixels."""
    patch, position = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    )
    weight = state[patch]
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    # The CLIP saw 2 x - 1 of levels x in [0, 1]; OWL-ViT is given y, and x = std y + mean.
    constant = (weight * (2 * mean - 1)).sum((1, 2, 3))
    state[patch] = weight * 2 * std
    first, others = state[position][:1], state[position][1:]
    side, wanted = round(len(others) ** 0.5), INPUT // weight.shape[-1]
    grid = others.T.reshape(1, -1, side, side)
    grown = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)[0].flatten(1).T
    state[position] = torch.cat([first, grown + constant])


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP's tokenizer with OWL-ViT's length and padding."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, pad_token=PAD, model_max_length=TOKENS)
    if tokenizer.pad_token_id != 0:
        raise ValueError(f"{folder}: {PAD} is number {tokenizer.pad_token_id}, and not 0; change PAD")
    return tokenizer


@torch.no_grad()
def text_states(model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """What the frozen text tower says of each text, (N, D)."""
    found = []
    for first in range(0, len(texts), 64):
        tokens = tokenizer(
            list(texts[first : first + 64]),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        outputs = model.owlvit.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        found.append(outputs.pooler_output)
    return torch.cat(found)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
    """Transformers' attention in float32, (B, heads, tokens, D) each: processors are slow at its bfloat16 gradient."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *others, **named)


AttentionInterface.register(EXACT, attend)


@dataclass(frozen=True)
class Found:
    """What the detector says of B images: logits (B, boxes, Q) for Q texts, boxes (B, boxes, 4) as centre x, y, width,
    height in [0, 1], and the embedding (B, boxes, D) of what each box holds, which it compares with those of texts."""

    logits: Tensor
    boxes: Tensor
    embeds: Tensor


def predict(model: OwlViTForObjectDetection, pixels: Tensor, states: Tensor, fast: bool = False) -> Found:
    """What is found of Q texts; with `fast`, for training, the vision tower computes in bfloat16 where that is faster.

    Arguments:
        pixels: (B, 3, H, W) in [-1, 1]; enlarged as the image processor does it.
        states: (Q, D), as `text_states` gives them.
    """
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD))
    side = model.config.vision_config.image_size
    square = resize_like_pil((pixels + 1) / 2, side, side)
    with autocast(pixels.device) if fast else contextlib.nullcontext():
        grid = model.image_embedder(pixel_values=(square - mean) / std)[0].float()
    features = grid.flatten(1, 2)
    texts = model.owlvit.text_projection(states)
    logits, embeds = model.class_predictor(features, texts[None].expand(len(pixels), -1, -1))
    return Found(logits, model.box_predictor(features, grid), embeds)
