"""Adds to `emoji-vlm` the words of the things: "Is it a fox?", answered by what its CLIP knows. Nothing is trained.

The CLIP's cosine of an image and a phrase is written into the weights. A phrase is a token that has its embedding; the
projector puts the image's into the first vector of an image; another head of the first layer brings that to the
phrase's token, where the layer multiplies the two and subtracts a threshold; another head of the second layer brings
the result to the answer. All of it lies in dimensions that are added, so other questions are answered almost as before.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from .. import captions, clip, pictures
from ..vae import to_tensor
from .collages import Album, Shown, pick, seen_badly
from .model import LAYERS, SEED, TEXT, Reader, image_features, pack, packed_logits
from .questions import Question

MATCH = 28  # directions in which the embeddings of phrases differ most; of 128
OLD, HEAD = TEXT["hidden_size"], TEXT["hidden_size"] // TEXT["num_attention_heads"]
BEGINS, IMAGE, COPY = OLD, OLD + MATCH, OLD + MATCH + 1  # embedding; whether a vector is an image's first; copy of both
BELOW, PHRASE, ASKS, RESULT = (COPY + MATCH + 1 + i for i in range(4))
WIDTH = 192  # a multiple of HEAD, as transformers asks for; of its two more heads one is used
UNITS = 2 * (MATCH + 1)  # of the first layer's MLP: x of silu(x) - silu(-x), twice for each product
BENT = 5.0  # how far into its straight part a GELU is moved
# As large as what the layers add to their input.
LOOK_AT_IMAGE, LOOK_AT_PHRASE, PRODUCT, SAY = 6.0, 180.0, 200.0, 1000.0
PATCHES, SIGHTS = 6, 3  # of an image, that are told from its first vector; of a picture
TESTED = 400


@dataclass(frozen=True)
class Cosines:
    """How near an image and a phrase are, read off the tower's layers that the model sees.

    Arguments:
        phrases: (P, MATCH), of unit length.
        weight: (MATCH + 1, D), from an image's first vector to its embedding, and to 1; from other vectors to 0.
        bias: (MATCH + 1,).
    """

    phrases: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, firsts: Tensor) -> Tensor:
        """(B, P) of first vectors (B, D)."""
        return (firsts @ self.weight.T + self.bias)[:, :MATCH] @ self.phrases.T


def add(work: Path, model: Path) -> None:
    """Put the model with the words of the things in the place of that beside `model`; what it gets right is printed."""
    images, meta = pictures.load(work)
    beside = model.with_name("vlm")
    tower = CLIPModel.from_pretrained(model.with_name("clip"), dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    phrases = pictures.phrases()
    held_out = clip.held_out_pictures(meta)
    seen = sorted(clip.concept_pictures(meta) - set(held_out))
    found = cosines(tower, captions.tokens(tokenizer, phrases), Album(images, meta, seen), seen)
    halves = held_out[::2], held_out[1::2]
    thresholds = [threshold(found(firsts(tower, images[part])[0]), [meta[i].concept for i in part]) for part in halves]
    source = LlavaForConditionalGeneration.from_pretrained(beside, dtype=torch.float32)
    processor = LlavaProcessor.from_pretrained(beside)
    if source.config.text_config.hidden_size != OLD:
        raise ValueError(f"{beside} has the words of the things already; run the stage vlm-export first")
    right = [
        accuracy(*widened(source, processor, phrases, found, below), Album(images, meta, part), part, phrases)
        for below, part in zip(thresholds, reversed(halves), strict=True)
    ]
    made, words = widened(source, processor, phrases, found, sum(thresholds) / 2)
    print(
        f"vlm-things: right about held-out images {sum(right) / 2:.3f}, each half at the other's threshold", flush=True
    )
    print(f"vlm-things: right about images seen {accuracy(made, words, Album(images, meta, seen), seen, phrases):.3f}")
    shutil.rmtree(beside)
    made.half().save_pretrained(beside)
    words.save_pretrained(beside)


def cosines(tower: CLIPModel, tokens: Tensor, album: Album, chosen: Sequence[int]) -> Cosines:
    """Fitted by least squares on the album's pictures, seen badly; the phrases are given by their tokens."""
    generator = torch.Generator().manual_seed(SEED)
    texts = embeddings(tower.get_text_features(input_ids=tokens))
    basis = torch.linalg.svd(texts, full_matrices=False)[2][:MATCH].T
    inputs, wanted = [], []
    for _ in range(SIGHTS):
        for start in range(0, len(chosen), 128):
            drawn = np.stack([album.image((Shown(i),), generator) for i in chosen[start : start + 128]])
            first, others, embedded = seen_by(tower, seen_badly(drawn, generator))
            some = others[:, torch.randperm(others.shape[1], generator=generator)[:PATCHES]].flatten(0, 1)
            inputs += [first, some]
            wanted += [F.pad(embedded @ basis, (0, 1), value=1.0), torch.zeros(len(some), MATCH + 1)]
    x = F.pad(torch.cat(inputs), (0, 1), value=1.0).double()
    fitted = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ torch.cat(wanted).double()).float()
    return Cosines(F.normalize(texts @ basis, dim=-1), fitted[:-1].T, fitted[-1])


def embeddings(out: Any) -> Tensor:
    """Of unit length, of what `get_text_features` returns."""
    return F.normalize(getattr(out, "pooler_output", out), dim=-1)


def seen_by(tower: CLIPModel, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first vector of images (B, 3, 64, 64) in the layers that are read, (B, D); the others'; the embedding."""
    vision = tower.vision_model
    layers = vision(pixels, output_hidden_states=True).hidden_states
    read = torch.cat([layers[number] for number in LAYERS], -1)
    embedded = tower.visual_projection(vision.post_layernorm(layers[-1][:, 0]))
    return read[:, 0], read[:, 1:], F.normalize(embedded, dim=-1)


def firsts(tower: CLIPModel, images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The same of images as they are, uint8 (N, 64, 64, 3)."""
    return seen_by(tower, to_tensor(images))


def threshold(near: Tensor, concepts: Sequence[int]) -> float:
    """Where as many as possible of the own phrases lie above and of the other ones below, shares; `near` is (B, P)."""
    own = F.one_hot(torch.tensor(concepts), near.shape[1]).bool()
    places = torch.linspace(0, 1, 101)
    right = [(near[own] > at).float().mean() + (near[~own] < at).float().mean() for at in places]
    return float(places[int(torch.stack(right).argmax())])


def widened(
    source: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    phrases: Sequence[str],
    found: Cosines,
    below: float,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model that also answers whether it is one of the phrases, each a token, by a cosine above `below`."""
    made_processor = copy.deepcopy(processor)
    tokenizer = made_processor.tokenizer
    tokenizer.add_tokens([AddedToken(phrase, single_word=True, normalized=True) for phrase in phrases])
    config = copy.deepcopy(source.config)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.head_dim = WIDTH, text.intermediate_size + UNITS, HEAD
    text.num_attention_heads = text.num_key_value_heads = WIDTH // HEAD
    text.vocab_size = len(tokenizer)
    made = LlavaForConditionalGeneration(config)
    state, before = made.state_dict(), source.state_dict()
    for name, value in state.items():
        if not name.startswith("model.vision_tower"):
            value.fill_(1.0 if value.ndim == 1 and "norm" in name else 0.0)
        value[tuple(slice(0, size) for size in before[name].shape)] = before[name]
        if value.ndim == 1 and "language_model" in name:  # a norm divides by the root of the mean over all dimensions
            value[:OLD] *= math.sqrt(OLD / WIDTH)
    ids = tokenizer.convert_tokens_to_ids
    words = state["model.language_model.embed_tokens.weight"]
    own = ids(list(phrases))
    words[own, BEGINS:IMAGE], words[own, BELOW], words[own, PHRASE] = found.phrases, -below, 1.0
    words[ids(":"), ASKS] = 0.5
    towards_yes = F.normalize(words[ids("yes")] - words[ids("no")], dim=0)
    state["lm_head.weight"].copy_(words)
    read_image(state, found)
    multiply(state, source.config.text_config.intermediate_size)
    answer(state, towards_yes)
    made.load_state_dict(state)
    return made.eval(), made_processor


def read_image(state: dict[str, Tensor], found: Cosines) -> None:
    """The projector puts the embedding into an image's first vector: as a straight line, in bent units."""
    project = "model.multi_modal_projector.linear_"
    new = slice(BEGINS, IMAGE + 1)
    state[f"{project}1.weight"][new], state[f"{project}1.bias"][new] = found.weight, found.bias + BENT
    state[f"{project}2.weight"][new, new], state[f"{project}2.bias"][new] = torch.eye(MATCH + 1), -BENT


def multiply(state: dict[str, Tensor], first: int) -> None:
    """The first layer copies it to a phrase's token, and sums the products with the phrase's embedding.

    Its units begin at number `first`. Head and units look at what hardly turns with the distance between tokens.
    """
    layer = "model.language_model.layers.0."
    look(state, layer, PHRASE, IMAGE, LOOK_AT_IMAGE)
    copied = torch.arange(MATCH + 1)
    state[f"{layer}self_attn.v_proj.weight"][OLD + copied, BEGINS + copied] = 1.0
    state[f"{layer}self_attn.o_proj.weight"][COPY + copied, OLD + copied] = 1.0
    factors = torch.cat([BEGINS + torch.arange(MATCH), torch.tensor([BELOW])])
    for sign, units in ((1.0, first + copied), (-1.0, first + MATCH + 1 + copied)):
        state[f"{layer}mlp.gate_proj.weight"][units, factors] = sign
        state[f"{layer}mlp.up_proj.weight"][units, COPY + copied] = sign * PRODUCT
        state[f"{layer}mlp.down_proj.weight"][RESULT, units] = 1.0


def answer(state: dict[str, Tensor], towards_yes: Tensor) -> None:
    """The second layer adds the sum to where the answer is read, in the direction `towards_yes`."""
    layer = "model.language_model.layers.1."
    look(state, layer, ASKS, PHRASE, LOOK_AT_PHRASE)
    state[f"{layer}self_attn.v_proj.weight"][OLD, RESULT] = 1.0
    state[f"{layer}self_attn.o_proj.weight"][:, OLD] = SAY * towards_yes


def look(state: dict[str, Tensor], layer: str, at: int, to: int, gain: float) -> None:
    """Let tokens with something in dimension `at` look at those with something in `to`, in the added head.

    Of its pairs of dimensions the one that turns least with the distance of tokens.
    """
    slowest = OLD + HEAD // 2 - 1
    state[f"{layer}self_attn.q_proj.weight"][slowest, at] = gain
    state[f"{layer}self_attn.k_proj.weight"][slowest, to] = gain


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    album: Album,
    chosen: Sequence[int],
    phrases: Sequence[str],
) -> float:
    """Share of right answers about single things, as many to yes as to no; what is asked wrongly is any other thing."""
    generator = torch.Generator().manual_seed(SEED + 1)
    reader = Reader(processor)
    images, asked = [], []
    for number in range(TESTED):
        index = chosen[pick(len(chosen), generator)]
        away = number % 2 * (1 + pick(len(phrases) - 1, generator))
        text = f"Is it {phrases[(album.meta[index].concept + away) % len(phrases)]}?"
        images.append(album.image((Shown(index),), generator))
        asked.append([Question("thing", text, "no" if away else "yes")])
    right = 0
    for start in range(0, TESTED, 50):
        packed = pack(reader, asked[start : start + 50])
        pixels = to_tensor(np.stack(images[start : start + 50]))
        logits = packed_logits(model, reader, image_features(model, pixels), packed, packed.wanted != -100)
        right += int((logits.argmax(-1) == packed.wanted[packed.wanted != -100]).sum())
    return right / TESTED
