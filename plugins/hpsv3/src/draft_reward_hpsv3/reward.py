"""HPS v3: a vision-language model reads an instruction with image and prompt, and a head rates what it read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from draft_core.errors import DraftError, RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD, normalize, resize_like_pil
from draft_core.rewards.weights import PUBLISHED as HUB
from draft_core.rewards.weights import RANDOM, HubFile, locate, read_tensors, seeded
from draft_reward_hpsv3 import Hpsv3Config
from draft_reward_hpsv3.judge import (
    FRAMES,
    MERGE,
    PATCH,
    SEVEN_B,
    TINY,
    Judge,
    empty_judge,
    load_published,
)
from draft_reward_hpsv3.marks import IMAGE_TOKEN, REWARD_TOKEN
from draft_reward_hpsv3.texts import conversations, qwen_tokenizer

WHERE = "reward 'hpsv3'"
PUBLISHED = HubFile("MizzenAI/HPSv3", "HPSv3.safetensors", megabytes=16_600)
PIXELS = 256 * 28 * 28  # of every image, nearly: both sides are multiples of 28
LONGEST = 200  # times the shorter side


class Hpsv3Reward(FrozenModule):
    """HPS v3, differentiable: higher is an image that people like better for its prompt.

    The mean of the normal distribution that the head gives for the state at the token <|Reward|>; its deviation is not
    used. Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score", arXiv 2508.03789.

    Raises:
        DraftError: if the weights or the tokenizer are missing or do not fit.
    """

    def __init__(self, config: Hpsv3Config) -> None:
        super().__init__()
        self.dtype = getattr(torch, config.dtype)
        self.tokenizer = qwen_tokenizer(config, where=WHERE)
        self.reward_token = self.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        self.judge = load_judge(config, len(self.tokenizer), self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt, if one side is
                more than 200 times the other, or if a prompt holds one of the model's own marks.
        """
        images = checked_images(images, prompts, where=WHERE)
        with torch.autocast(images.device.type, enabled=False):
            patches, (rows, columns) = patched(images)
            texts = conversations(prompts, rows * columns // MERGE**2, where=WHERE)
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(images.device)
            ids = tokens["input_ids"]
            grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
            places = (ids == self.reward_token).int().argmax(1)
            rated = self.judge(ids, tokens["attention_mask"], patches.flatten(0, 1).to(self.dtype), grid, places)
            scores: Tensor = rated[:, 0]
        return scores


def patched(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patches (B, rows * columns, 3 * 2 * 14 * 14) of images (B, 3, H, W), and how many rows and columns there are.

    The image is resized by Pillow's bicubic to 256 * 28 * 28 pixels or nearly so, its aspect kept, and normalised as
    for CLIP. Four patches that make one token stand together; each patch holds the image twice, as two frames.

    Raises:
        RewardError: if one side is more than 200 times the other.
    """
    height, width = images.shape[-2:]
    if max(height, width) > LONGEST * min(height, width):
        raise RewardError(
            f"images are {height} x {width}, and one side may be {LONGEST} times the other at most",
            where=WHERE,
            next="crop them",
        )
    height, width = smart_resize(height, width, factor=PATCH * MERGE, min_pixels=PIXELS, max_pixels=PIXELS)
    pixels = normalize(resize_like_pil(images, height, width), CLIP_MEAN, CLIP_STD)
    down, across = height // (MERGE * PATCH), width // (MERGE * PATCH)
    blocks = pixels.reshape(len(images), 3, down, MERGE, PATCH, across, MERGE, PATCH)
    # (B, 3, rows / 2, 2, 14, columns / 2, 2, 14) -> (B, rows / 2, columns / 2, 2, 2, 3, frames, 14, 14)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    blocks = blocks.expand(*blocks.shape[:6], FRAMES, *blocks.shape[7:])
    return blocks.flatten(5).flatten(1, 4), (height // PATCH, width // PATCH)


def load_judge(config: Hpsv3Config, vocabulary: int, image_token: int) -> Judge:
    """The model in the configured precision, with its head in float32."""
    dtype = getattr(torch, config.dtype)
    sizes = TINY if config.architecture == "tiny" else SEVEN_B
    path = weight_file(config)
    if path is None:
        with seeded(config.seed):
            judge = Judge(sizes, vocabulary, image_token)
        judge.backbone.to(dtype)
        return judge
    judge = empty_judge(sizes, vocabulary, image_token)
    load_published(judge, read_tensors(path, where=WHERE), dtype, where=f"{WHERE}, weights")
    return judge


def weight_file(config: Hpsv3Config) -> Path | None:
    """Where the weights are, None for random ones; what cannot fit is refused before anything is fetched."""
    if config.weights == RANDOM:
        return None
    if config.architecture == "tiny" and config.weights == HUB:
        raise DraftError("the tiny model has no published weights", where=WHERE, next=f"set weights to {RANDOM}")
    return locate(config.weights, PUBLISHED, where=WHERE, option="weights")
