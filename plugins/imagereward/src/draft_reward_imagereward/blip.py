"""The networks of ImageReward, built from transformers' BLIP, and how the published file names their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from draft_core.rewards.weights import require_fit

SIDE = 224
# BLIP's med_config.json and its "large" vision transformer. transformers' own defaults differ: 8 heads, eps 1e-5, and
# an initializer_range of 1e-10, with which random vision transformers would see nothing.
LARGE: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "initializer_range": 0.02,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "initializer_range": 0.02,
    },
}
# For tests: the shape of the published networks at a two-hundredth of their size, with BERT's whole vocabulary.
TINY: dict[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 32,
        "initializer_range": 0.1,
    },
    "text": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "initializer_range": 0.2,
    },
}
VOCABULARY = 30522 + 2  # bert-base-uncased, [DEC] and [ENC]
HEAD = (1024, 128, 64, 16, 1)
HEAD_DROPOUT = (0.2, 0.2, 0.1)  # behind the first three layers: active in training alone, and they count in the names

# What the published file has beside: positions that are computed here, and projections that the score does not use.
UNUSED = frozenset(
    [
        "blip.text_encoder.embeddings.position_ids",
        *(f"blip.{side}_proj.{what}" for side in ("vision", "text") for what in ("weight", "bias")),
    ]
)

# Our names -> those of the published file, applied in this order.
_RENAMED = (
    (r"^vision\.embeddings\.class_embedding$", "blip.visual_encoder.cls_token"),
    (r"^vision\.embeddings\.position_embedding$", "blip.visual_encoder.pos_embed"),
    (r"^vision\.embeddings\.patch_embedding\.", "blip.visual_encoder.patch_embed.proj."),
    (r"^vision\.post_layernorm\.", "blip.visual_encoder.norm."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"blip.visual_encoder.blocks.\1.attn.qkv."),
    (r"^vision\.encoder\.layers\.(\d+)\.self_attn\.projection\.", r"blip.visual_encoder.blocks.\1.attn.proj."),
    (r"^vision\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blip.visual_encoder.blocks.\1.norm\2."),
    (r"^vision\.encoder\.layers\.(\d+)\.mlp\.", r"blip.visual_encoder.blocks.\1.mlp."),
    (r"^text\.", "blip.text_encoder."),
    (r"^head\.", "mlp.layers."),
)


class Networks(torch.nn.Module):
    """Vision transformer, text encoder that attends to it, and head: one rating for each image with its prompt.

    Arguments:
        sizes: `LARGE` or `TINY`.
    """

    def __init__(self, sizes: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        vision = BlipVisionConfig(image_size=SIDE, layer_norm_eps=1e-6, **sizes["vision"])
        text = BlipTextConfig(
            vocab_size=VOCABULARY,
            encoder_hidden_size=vision.hidden_size,
            is_decoder=True,  # which is what gives it attention to the image
            **sizes["text"],
        )
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = head(text.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Ratings (B,) float32, not yet normalised.

        Arguments:
            pixels: (B, 3, 224, 224), normalised, in the encoders' precision.
            ids, mask: (B, L) of the prompts' tokens.
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,  # each token sees all others, as in an encoder
        ).last_hidden_state
        ratings: Tensor = self.head(read[:, 0].float())[:, 0]
        return ratings

    def encoders_to(self, dtype: torch.dtype) -> Networks:
        """Itself, with both encoders in another precision; the head stays in float32."""
        self.vision.to(dtype)
        self.text.to(dtype)
        return self


def head(width: int) -> torch.nn.Sequential:
    """The published head: five linear layers with nothing between them but dropout."""
    layers: list[torch.nn.Module] = []
    for place, size in enumerate(HEAD):
        layers.append(torch.nn.Linear(width, size))
        layers += [torch.nn.Dropout(share) for share in HEAD_DROPOUT[place : place + 1]]
        width = size
    return torch.nn.Sequential(*layers)


def published_name(name: str) -> str:
    """What the published file calls one of our tensors."""
    for ours, theirs in _RENAMED:
        name, changed = re.subn(ours, theirs, name)
        if changed:
            break
    return name


def load_published(networks: Networks, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Puts the tensors of a published file into the networks: every one that they have, and nothing left over.

    Arguments:
        networks: changed in place; they keep their precision.
        tensors: name -> tensor, as ImageReward's own `state_dict` has them.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if something is missing, unexpected except `UNUSED`, or of another shape.
    """
    own = {published_name(name): (name, tensor.shape) for name, tensor in networks.state_dict().items()}
    require_fit(
        "ImageReward",
        missing=own.keys() - tensors.keys(),
        unexpected=tensors.keys() - own.keys() - UNUSED,
        mismatched={
            name: (tuple(tensors[name].shape), tuple(shape))
            for name, (_, shape) in own.items()
            if name in tensors and tensors[name].shape != shape
        },
        where=where,
    )
    networks.load_state_dict({name: tensors[published] for published, (name, _) in own.items()})
