"""The aesthetic predictor: an image tower of CLIP, and a small head that rates its embedding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize, resize_and_crop_like_pil
from draft_core.rewards.weights import PUBLISHED, RANDOM, HubFile, explained, load_strict, locate, read_tensors, seeded
from draft_reward_aesthetic import AestheticConfig

WHERE = "reward 'aesthetic'"
SIDE = 224
EMBEDDING = 768

# OpenAI trained with QuickGELU. open_clip's plain "ViT-L-14" builds GELU, which shifts scores by 0.004 to 0.02.
CLIP_NAME, CLIP_TAG = "ViT-L-14-quickgelu", "openai"
CLIP_MEGABYTES = 1710
HEAD = HubFile("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", megabytes=3.7)

# For tests: the shape of the published tower at a hundredth of its size. Its text side is never used.
TINY = {
    "embed_dim": EMBEDDING,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIDE, "patch_size": 32, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
}


class AestheticReward(FrozenModule):
    """LAION's aesthetic predictor v2, differentiable: higher is an image that people rate higher.

    Christoph Schuhmann, "improved-aesthetic-predictor", 2022.

    Raises:
        DraftError: if a weight file is missing or does not fit.
    """

    def __init__(self, config: AestheticConfig) -> None:
        super().__init__()
        self.dtype = getattr(torch, config.dtype)
        self.tower = image_tower(config).to(self.dtype)
        self.head = rating_head(config)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Ratings (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images.
        """
        images = checked_images(images, prompts, where=WHERE)
        with torch.autocast(images.device.type, enabled=False):
            pixels = normalize(_at_clips_size(images), CLIP_MEAN, CLIP_STD)
            embedding = self.tower(pixels.to(self.dtype))
            rating: Tensor = self.head(_unit_length(embedding.float())).squeeze(1)
        return rating


def image_tower(config: AestheticConfig) -> torch.nn.Module:
    """CLIP's image side with its projection, (B, 3, 224, 224) normalised -> (B, 768)."""
    with seeded(config.seed):
        clip = open_clip.CLIP(**(TINY if config.architecture == "tiny" else open_clip.get_model_config(CLIP_NAME)))
    if config.clip != RANDOM:
        load_strict(clip, read_tensors(_clip_file(config.clip), where=WHERE), where=f"{WHERE}, clip")
    tower: torch.nn.Module = clip.visual
    return tower


def rating_head(config: AestheticConfig) -> torch.nn.Module:
    """The published head, (B, 768) of unit length -> (B, 1), float32.

    Five linear layers with nothing but dropout between them. The dropout is left out, which is what eval
    mode makes of it; its places keep the published names of the layers: 0, 2, 4, 6, 7.
    """
    with seeded(config.seed):
        layers = torch.nn.Sequential(
            torch.nn.Linear(EMBEDDING, 1024),
            torch.nn.Identity(),
            torch.nn.Linear(1024, 128),
            torch.nn.Identity(),
            torch.nn.Linear(128, 64),
            torch.nn.Identity(),
            torch.nn.Linear(64, 16),
            torch.nn.Linear(16, 1),
        )
    head = torch.nn.Sequential(OrderedDict(layers=layers))
    if config.head != RANDOM:
        path = locate(config.head, HEAD, where=WHERE, option="head")
        load_strict(head, read_tensors(path, where=WHERE), where=f"{WHERE}, head")
    return head


def _clip_file(source: str) -> Path:
    """The weight file; for the published one open_clip itself knows where it lies."""
    if source != PUBLISHED:
        return locate(source, None, where=WHERE, option="clip")
    what = f"open_clip's {CLIP_NAME} {CLIP_TAG}"
    with explained(what, megabytes=CLIP_MEGABYTES, where=WHERE, option="clip"):
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(CLIP_NAME, CLIP_TAG)))


def _at_clips_size(images: Tensor) -> Tensor:
    """The central square, (B, 3, 224, 224), resized and cropped like OpenAI's `clip.load` does it."""
    return resize_and_crop_like_pil(images, SIDE, SIDE, rounding="half-even")


def _unit_length(embedding: Tensor) -> Tensor:
    """Divided by its norm, and by 1 where that is zero, as published."""
    norm = embedding.norm(dim=1, keepdim=True)
    unit: Tensor = embedding / norm.where(norm > 0, 1.0)
    return unit
