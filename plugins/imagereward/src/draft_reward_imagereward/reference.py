"""ImageReward a second time, to compare the reward with: Pillow and plain torch, slow, without a gradient.

Pillow resizes and crops; vision transformer, text encoder and head are written out here after BLIP's definition,
without transformers, and take the reward's own weights by the names of the published file. The package `image-reward`
itself cannot be asked: it needs timm 0.6.13, and does not import under transformers 5; the tests load its modules one
by one where it is installed. Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, embedding, gelu, layer_norm, linear, scaled_dot_product_attention

from draft_core.rewards.images import CLIP_MEAN, CLIP_STD
from draft_reward_imagereward import ImageRewardConfig
from draft_reward_imagereward.blip import LARGE, TINY, published_name
from draft_reward_imagereward.reward import ImageReward, bert_tokenizer

Score = Callable[[list[Image.Image], list[str]], Tensor]


def reference(reward: ImageReward, config: ImageRewardConfig) -> Score:
    """The score in float32 on the CPU, one image at a time."""
    own = copy.deepcopy(reward.networks).float().cpu().state_dict()
    weights = Weights({published_name(name): tensor for name, tensor in own.items()})
    sizes = TINY if config.architecture == "tiny" else LARGE
    vision_heads, text_heads = (sizes[part]["num_attention_heads"] for part in ("vision", "text"))
    tokenizer = bert_tokenizer(config)

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str) -> Tensor:
        seen = vision(weights.under("blip.visual_encoder"), prepared(image), vision_heads)
        ids = torch.tensor(tokenizer(prompt, truncation=True, max_length=35)["input_ids"])  # unpadded: nothing to mask
        read = text(weights.under("blip.text_encoder"), ids, seen, text_heads)
        rating = read[0]
        for layer in (0, 2, 4, 6, 7):
            rating = weights.under(f"mlp.layers.{layer}").linear(rating)
        return (rating[0] - 0.16717362830052426) / 1.0333394966054072

    return lambda images, prompts: torch.stack([score_one(*pair) for pair in zip(images, prompts, strict=True)])


class Weights(dict[str, Tensor]):
    """Tensors by name, and the layers that they make up."""

    def under(self, prefix: str) -> Weights:
        """Those whose names begin with the prefix and a dot, without it."""
        return Weights({name[len(prefix) + 1 :]: t for name, t in self.items() if name.startswith(f"{prefix}.")})

    def linear(self, x: Tensor) -> Tensor:
        """A linear layer."""
        return linear(x, self["weight"], self["bias"])

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """A layer normalisation."""
        return layer_norm(x, x.shape[-1:], self["weight"], self["bias"], eps)

    def count(self) -> int:
        """How many numbered blocks there are."""
        return 1 + max(int(name.split(".")[0]) for name in self)


def prepared(image: Image.Image) -> Tensor:
    """Pixels (3, 224, 224): shortest side to 224 by Pillow's bicubic, the central square, CLIP's normalisation."""
    image = image.convert("RGB")
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(224 * width / short), int(224 * height / short)), Image.Resampling.BICUBIC)
    left, top = (round((side - 224) / 2) for side in image.size)
    levels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / np.float32(255)
    mean, std = (np.array(values, dtype=np.float32) for values in (CLIP_MEAN, CLIP_STD))
    return torch.from_numpy((levels - mean) / std).permute(2, 0, 1)


def vision(weights: Weights, pixels: Tensor, heads: int) -> Tensor:
    """States (1 + patches, D): a vision transformer that normalises before each part of a block."""
    kernel = weights["patch_embed.proj.weight"]
    patches = conv2d(pixels[None], kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])[0].flatten(1).T
    states = torch.cat([weights["cls_token"][0], patches]) + weights["pos_embed"][0]
    for place in range(weights.under("blocks").count()):
        block = weights.under(f"blocks.{place}")
        queries, keys, values = block.under("attn.qkv").linear(block.under("norm1").norm(states, 1e-6)).chunk(3, dim=1)
        states = states + block.under("attn.proj").linear(attended(queries, keys, values, heads))
        inner = gelu(block.under("mlp.fc1").linear(block.under("norm2").norm(states, 1e-6)))
        states = states + block.under("mlp.fc2").linear(inner)
    return weights.under("norm").norm(states, 1e-6)


def text(weights: Weights, ids: Tensor, seen: Tensor, heads: int) -> Tensor:
    """States (L, D): BERT with attention to the image's states in every layer, normalised after each part."""
    states = embedding(ids, weights["embeddings.word_embeddings.weight"])
    states = states + weights["embeddings.position_embeddings.weight"][: len(ids)]
    states = weights.under("embeddings.LayerNorm").norm(states, 1e-12)
    for place in range(weights.under("encoder.layer").count()):
        layer = weights.under(f"encoder.layer.{place}")
        for part, source in (("attention", None), ("crossattention", seen)):
            own, kept = layer.under(f"{part}.self"), layer.under(f"{part}.output")
            source = states if source is None else source
            three = (
                own.under("query").linear(states),
                own.under("key").linear(source),
                own.under("value").linear(source),
            )
            states = kept.under("LayerNorm").norm(states + kept.under("dense").linear(attended(*three, heads)), 1e-12)
        inner = gelu(layer.under("intermediate.dense").linear(states))
        states = layer.under("output.LayerNorm").norm(states + layer.under("output.dense").linear(inner), 1e-12)
    return states


def attended(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Attention with several heads, (L, D), of queries (L, D), keys and values (S, D)."""
    q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (queries, keys, values))
    return scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
