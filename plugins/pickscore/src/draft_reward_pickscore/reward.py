"""PickScore: a CLIP of transformers, tuned on which of two images people picked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

from draft_core.rewards import FrozenModule, RelativePrompt, TextFeatureCache, checked_images
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize, resize_and_crop_like_pil
from draft_core.rewards.weights import RANDOM, load_pretrained, load_tokenizer, locate_model, seeded
from draft_reward_pickscore import PickScoreConfig

WHERE = "reward 'pickscore'"
MODEL, MODEL_MEGABYTES = "yuvalkirstain/PickScore_v1", 3945
TOKENIZER, TOKENIZER_MEGABYTES = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 4
BYTES = "bytes"
TOKENS = 77

# For tests: the shape of the published model, and its activation, at a thousandth of its size. An eos_token_id
# of 2 is what the published config says too, and means "the token with the highest number".
_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY: dict[str, Any] = {
    "projection_dim": 64,
    "logit_scale_init_value": 4.6052,  # log 100, at which CLIP's training stops it
    "vision_config": {**_LAYERS, "image_size": 224, "patch_size": 32, "hidden_act": "gelu"},
    "text_config": {**_LAYERS, "max_position_embeddings": TOKENS, "hidden_act": "gelu", "eos_token_id": 2},
}


class PickScoreReward(FrozenModule):
    """PickScore v1, differentiable: higher is the image that people would rather pick for the prompt.

    exp(logit scale) times the cosine between the embeddings of image and prompt, or relative to control words.
    Kirstain et al. 2023, "Pick-a-Pic", arXiv 2305.01569, equation 2.

    Raises:
        DraftError: if the model or its tokenizer is missing or does not fit.
    """

    scale: Tensor

    def __init__(self, config: PickScoreConfig) -> None:
        super().__init__()
        self.dtype = getattr(torch, config.dtype)
        self.tokenizer = clip_tokenizer(config)
        clip = load_clip(config)
        self.register_buffer("scale", clip.logit_scale.detach().exp())
        self.clip = clip.to(self.dtype)
        self.relative = RelativePrompt(config.positive, config.negative, config.k)
        self.memory = TextFeatureCache()
        self.side: int = clip.config.vision_config.image_size
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=WHERE)
        with torch.autocast(images.device.type, enabled=False):
            images = self.image_features(images)
            texts = self.memory(
                prompts,
                lambda prompt: self.relative(prompt, lambda text: self.text_features(text, images.device)),
                images.device,
            )
            scores: Tensor = self.scale * (images * texts).sum(1)
        return scores

    def image_features(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of unit length, float32, of images (B, 3, H, W) float32."""
        square = resize_and_crop_like_pil(images, self.side, self.side, rounding="floor")
        pixels = normalize(square, CLIP_MEAN, CLIP_STD).to(self.dtype)
        # Not `get_image_features`: what that returns differs between transformers 4 and 5.
        features: Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return unit_length(features.float())

    def text_features(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (D,) of unit length, float32."""
        tokens = self.tokenizer([prompt], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        outputs = self.clip.text_model(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        features: Tensor = self.clip.text_projection(outputs.pooler_output)
        return unit_length(features.float())[0]


def load_clip(config: PickScoreConfig) -> Any:
    """The CLIPModel in float32."""
    if config.weights == RANDOM:
        with seeded(config.seed):
            return CLIPModel(CLIPConfig(**TINY))
    name = locate_model(config.weights, MODEL, where=WHERE, option="weights")
    return load_pretrained(CLIPModel, name, megabytes=MODEL_MEGABYTES, where=WHERE, option="weights")


def clip_tokenizer(config: PickScoreConfig) -> Any:
    """The CLIP tokenizer of transformers; unlike open_clip's it leaves curly quotes and HTML entities alone.

    The fast one, which the published processor takes: in transformers 4 the other one mends quotes where ftfy is there.
    """
    if config.tokenizer == BYTES:
        return byte_tokenizer()
    name = locate_model(config.tokenizer, TOKENIZER, where=WHERE, option="tokenizer")
    return load_tokenizer(CLIPTokenizerFast, name, megabytes=TOKENIZER_MEGABYTES, where=WHERE, option="tokenizer")


def byte_tokenizer() -> Any:
    """A CLIP tokenizer that joins no bytes, and so needs no vocabulary."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that stand for themselves in CLIP's
    letters = [chr(code) for code in codes] + [chr(256 + place) for place in range(256 - len(codes))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(
            json.dumps({token: place for place, token in enumerate(tokens)}), encoding="utf-8"
        )
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder)
