"""ImageReward: BLIP reads the prompt while it looks at the image, and a head rates what it read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizerFast

from draft_core.errors import DraftError
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize, resize_and_crop_like_pil
from draft_core.rewards.weights import PUBLISHED as HUB
from draft_core.rewards.weights import RANDOM, HubFile, load_tokenizer, locate, locate_model, read_tensors, seeded
from draft_reward_imagereward import ImageRewardConfig
from draft_reward_imagereward.blip import LARGE, SIDE, TINY, Networks, load_published
from draft_reward_imagereward.tiny import CHARACTERS, character_tokenizer

WHERE = "reward 'imagereward'"
PUBLISHED = HubFile("THUDM/ImageReward", "ImageReward.pt", megabytes=1790)
TOKENIZER, TOKENIZER_MEGABYTES = "google-bert/bert-base-uncased", 1
ADDED = ("[DEC]", "[ENC]")  # BLIP's own tokens, behind BERT's vocabulary in this order
TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the ratings, published with the weights


class ImageReward(FrozenModule):
    """ImageReward 1.0, differentiable: higher is an image that people rate higher for its prompt.

    The rating of a head on BLIP's first token, minus the mean of ratings, in their standard deviations. Xu et al. 2023,
    "ImageReward", arXiv 2304.05977, section 2.3; the package `image-reward` 1.5 has the same weights.

    Raises:
        DraftError: if the weights or the tokenizer are missing or do not fit.
    """

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.dtype = getattr(torch, config.dtype)
        self.tokenizer = bert_tokenizer(config)
        self.networks = load_networks(config).encoders_to(self.dtype)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=WHERE)
        with torch.autocast(images.device.type, enabled=False):
            square = resize_and_crop_like_pil(images, SIDE, SIDE, rounding="half-even")
            pixels = normalize(square, CLIP_MEAN, CLIP_STD).to(self.dtype)
            scores: Tensor = (self.networks(pixels, *self.tokens(prompts, images.device)) - MEAN) / STD
        return scores

    def tokens(self, prompts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers and mask (B, 35) of the prompts' tokens; what does not fit is cut off."""
        limits = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        tokens = self.tokenizer(list(prompts), return_tensors="pt", **limits).to(device)
        return tokens["input_ids"], tokens["attention_mask"]


def load_networks(config: ImageRewardConfig) -> Networks:
    """The networks in float32."""
    path = weight_file(config)
    with seeded(config.seed):
        networks = Networks(TINY if config.architecture == "tiny" else LARGE)
    if path:
        load_published(networks, read_tensors(path, where=WHERE), where=f"{WHERE}, weights")
    return networks


def weight_file(config: ImageRewardConfig) -> Path | None:
    """Where the weights are, None for random ones; what cannot fit is refused before anything is fetched."""
    if config.weights == RANDOM:
        return None
    if config.architecture == "tiny" and config.weights == HUB:
        raise DraftError("the tiny networks have no published weights", where=WHERE, next=f"set weights to {RANDOM}")
    return locate(config.weights, PUBLISHED, where=WHERE, option="weights")


def bert_tokenizer(config: ImageRewardConfig) -> Any:
    """BERT's tokenizer without capitals, and BLIP's two tokens."""
    if config.tokenizer == CHARACTERS:
        tokenizer = character_tokenizer()
    else:
        name = locate_model(config.tokenizer, TOKENIZER, where=WHERE, option="tokenizer")
        tokenizer = load_tokenizer(
            BertTokenizerFast, name, megabytes=TOKENIZER_MEGABYTES, where=WHERE, option="tokenizer"
        )
    tokenizer.add_tokens(list(ADDED), special_tokens=True)
    return tokenizer
