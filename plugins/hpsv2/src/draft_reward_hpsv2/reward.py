"""The Human Preference Score: a CLIP of open_clip, tuned on which images people preferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.nn.functional import normalize as unit_length

from draft_core.rewards import FrozenModule, RelativePrompt, TextFeatureCache, checked_images
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize
from draft_core.rewards.weights import RANDOM, HubFile, load_strict, locate, read_tensors, seeded
from draft_reward_hpsv2 import Hpsv2Config

WHERE = "reward 'hpsv2'"
SIDE = 224
CLIP_NAME = "ViT-H-14"
PUBLISHED = {
    "2.0": HubFile("xswu/HPSv2", "HPS_v2_compressed.pt", megabytes=1970),
    "2.1": HubFile("xswu/HPSv2", "HPS_v2.1_compressed.pt", megabytes=1970),
}

# For tests: the shape of the published model at a two-hundredth of its size, with CLIP's whole vocabulary.
TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "patch_size": 32, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


class Hpsv2Reward(FrozenModule):
    """HPS v2 or v2.1, differentiable: higher is an image that people like better for its prompt.

    The cosine between the embeddings of image and prompt, or relative to control words. Wu et al. 2023, "Human
    Preference Score v2", arXiv 2306.09341.

    Raises:
        DraftError: if the weight file is missing or does not fit.
    """

    def __init__(self, config: Hpsv2Config) -> None:
        super().__init__()
        self.antialias = config.antialias
        self.dtype = getattr(torch, config.dtype)
        self.clip = load_clip(config).to(self.dtype)
        self.relative = RelativePrompt(config.positive, config.negative, config.k)
        self.memory = TextFeatureCache()
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
            scores: Tensor = (images * texts).sum(1)
        return scores

    def image_features(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of unit length, float32, of images (B, 3, H, W) float32."""
        square = letterbox(images, SIDE, antialias=self.antialias)
        pixels = normalize(square, CLIP_MEAN, CLIP_STD)
        return unit_length(self.clip.encode_image(pixels.to(self.dtype)).float())

    def text_features(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (D,) of unit length, float32; the prompt is cut after 77 tokens."""
        tokens = open_clip.tokenize([prompt]).to(device)
        return unit_length(self.clip.encode_text(tokens).float())[0]


def load_clip(config: Hpsv2Config) -> Any:
    """The CLIP in float32. The base model's weights are never fetched: all of them are replaced."""
    with seeded(config.seed):
        clip = open_clip.CLIP(**(TINY if config.architecture == "tiny" else open_clip.get_model_config(CLIP_NAME)))
    if config.weights != RANDOM:
        path = locate(config.weights, PUBLISHED[config.version], where=WHERE, option="weights")
        load_strict(clip, read_tensors(path, where=WHERE), where=f"{WHERE}, weights")
    return clip


def letterbox(images: Tensor, side: int, *, antialias: bool) -> Tensor:
    """The whole image with its longer side `side`, between black bars, (B, 3, side, side).

    As published: bicubic on floats, neither rounded nor clamped; sizes by Python's `round`; the left and the
    upper bar get the smaller half. The reference fails where the longer side is `side` already; here it is padded.
    """
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    if scale != 1:
        height, width = (max(round(length * scale), 1) for length in (height, width))
        images = interpolate(images, (height, width), mode="bicubic", align_corners=False, antialias=antialias)
    left, top = (side - width) // 2, (side - height) // 2
    return pad(images, (left, side - width - left, top, side - height - top))
