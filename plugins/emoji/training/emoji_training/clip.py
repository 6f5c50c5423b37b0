"""Gives the text tower its first meaning: a small CLIP of captions against a vision transformer.

The image half is not part of the pipeline. The stage keeps the whole CLIPModel in the work folder, because
a model that has seen only these pictures can later serve as a held-out monitor of alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from . import captions, pictures
from .loop import Budget, Recipe, Training
from .pictures import Picture
from .vae import autocast, to_tensor

RECIPE = Recipe(lr=1e-3, weight_decay=0.1, ema=0.995)
CONCEPTS, OTHERS, PAIRS = 64, 32, 32  # labels in a batch; PAIRS of the concepts come in two styles
SHIFT = 4  # pixels of random translation
HELD_OUT_EVERY = 6


def train(work: Path, budget: Budget, device: torch.device) -> None:
    """Leave a transformers CLIPModel and the tokenizer in work/clip; retrieval figures are printed."""
    images, meta = pictures.load(work)
    folder = work / "clip" / "model"
    tokenizer = captions.make_tokenizer(folder, meta)
    training = Training(build(tokenizer).to(device), RECIPE, budget, work / "clip" / "checkpoint.pt")
    model = training.module
    if device.type == "cpu":  # at these sizes the backward pass of fused attention is the slower one there
        model.set_attn_implementation("eager")
    held_out = held_out_pictures(meta)
    by_label = group(meta, exclude=held_out)

    def loss(generator: torch.Generator) -> Tensor:
        chosen, texts = draw(meta, by_label, generator)
        x = augment(to_tensor(images[chosen]), generator).to(device)
        ids = captions.tokens(tokenizer, texts).to(device)
        with autocast(device):
            logits = model(input_ids=ids, pixel_values=x).logits_per_text.float()
        target = torch.arange(len(ids), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    size = CONCEPTS + PAIRS + OTHERS
    for p in training.run(loss, report_every=50):
        print(
            f"clip  {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * size:.0f} img/s",
            flush=True,
        )

    final = build(tokenizer)
    final.load_state_dict(training.averaged())
    final.eval().save_pretrained(folder)
    for name, indices in (("held-out", held_out), ("seen", sorted(concept_pictures(meta) - set(held_out)))):
        top1, top5 = retrieval(final, tokenizer, images, meta, indices)
        print(f"clip  {name}: {len(indices)} pictures, top-1 {top1:.3f}, top-5 {top5:.3f}", flush=True)


def load(work: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """The trained model, frozen, and its tokenizer."""
    folder = work / "clip" / "model"
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Text: 3 layers of width 160 and 24 tokens. Vision: 8-pixel patches, 4 layers of width 160."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": captions.LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": 128,
    }
    vision = {
        "image_size": pictures.SIZE,
        "patch_size": 8,
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def held_out_pictures(meta: Sequence[Picture]) -> list[int]:
    """One picture of every sixth concept, its styles in turn, that CLIP never trains on."""
    wanted = {n: list(pictures.STYLES)[n // HELD_OUT_EVERY % 3] for n in range(0, 10_000, HELD_OUT_EVERY)}
    return [i for i, p in enumerate(meta) if wanted.get(p.concept) == p.style]


def concept_pictures(meta: Sequence[Picture]) -> set[int]:
    """Indices of the pictures that show a concept."""
    return {i for i, p in enumerate(meta) if p.concept >= 0}


def group(meta: Sequence[Picture], exclude: Sequence[int]) -> dict[bool, list[list[int]]]:
    """True: the concepts, False: all other emoji; each a list, by label, of the pictures' indices."""
    found: dict[str, list[int]] = {}
    hidden = set(exclude)
    for i, p in enumerate(meta):
        if i not in hidden:
            found.setdefault(p.label, []).append(i)
    return {side: [v for v in found.values() if (meta[v[0]].concept >= 0) == side] for side in (True, False)}


def draw(
    meta: Sequence[Picture], by_label: dict[bool, list[list[int]]], generator: torch.Generator
) -> tuple[np.ndarray, list[str]]:
    """Pictures and captions for a batch in which no caption fits two pictures.

    Labels do not repeat, but for pairs in two styles, whose captions then name the style: without them
    nothing in the batch would reward the text tower for reading it.
    """
    chosen: list[int] = []
    texts: list[str] = []
    for side, count in ((True, CONCEPTS), (False, OTHERS)):
        labels = torch.randperm(len(by_label[side]), generator=generator)[:count].tolist()
        for k, label in enumerate(labels):
            options = by_label[side][label]
            order = torch.randperm(len(options), generator=generator).tolist()
            pair = side and k < PAIRS and len(options) > 1
            for i in order[: 2 if pair else 1]:
                picture = meta[options[i]]
                plain = f"{captions.styled(picture.style)}, {picture.phrase}"
                chosen.append(options[i])
                texts.append(plain if pair else captions.caption(picture, generator, empty=0.0))
    return np.array(chosen), texts


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, shift, vary contrast and add noise; (B, 3, 64, 64) in about [-1, 1]."""
    n = len(x)
    mirror = torch.rand(n, generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (SHIFT,) * 4, value=1.0)  # 1 is white
    offsets = torch.randint(2 * SHIFT + 1, (n, 2), generator=generator).tolist()
    side = x.shape[-1]
    x = torch.stack([p[:, a : a + side, b : b + side] for p, (a, b) in zip(padded, offsets, strict=True)])
    contrast = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = 0.1 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    return 1 + (x - 1) * contrast + noise


@torch.no_grad()
def retrieval(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    images: np.ndarray,
    meta: Sequence[Picture],
    indices: Sequence[int],
) -> tuple[float, float]:
    """Share of pictures whose own concept is first, and among the first five, of all concepts' captions."""
    phrases = {p.concept: p.phrase for p in meta if p.concept >= 0}
    numbers = sorted(phrases)
    ids = captions.tokens(tokenizer, [phrases[n] for n in numbers])
    scores = model(input_ids=ids, pixel_values=to_tensor(images[list(indices)])).logits_per_image
    order = scores.argsort(dim=1, descending=True)
    truth = torch.tensor([numbers.index(meta[i].concept) for i in indices])
    hit = order[:, :5] == truth[:, None]
    return float(hit[:, 0].float().mean()), float(hit.any(1).float().mean())
