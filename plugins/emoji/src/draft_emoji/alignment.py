"""The scores of small CLIPs that know emoji only: whether an image shows its prompt, and how well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from transformers import CLIPModel, CLIPTokenizer

from draft_core.rewards import FrozenModule, RelativePrompt, TextFeatureCache, checked_images
from draft_core.rewards.images import normalize, resize_like_pil
from draft_core.rewards.weights import load_pretrained, load_tokenizer
from draft_emoji import FOLDER, ClipConfig
from draft_emoji.configs import EmojiClipConfig

SIDE = 64
TOKENS = 24
NETWORKS = {  # kind -> the folder of its weights, and the factor of the cosine
    "emoji-clip": ("clip", 1.0),
    "emoji-contrast": ("clip", 1.0),
    "emoji-preference": ("preference", 100.0),
    "emoji-scene": ("scene-clip", 100.0),
    "emoji-scene-contrast": ("scene-clip", 1.0),
}


class EmojiClip(FrozenModule):
    """`scale` times the cosine between the CLIP embeddings of image and prompt (Radford et al. 2021), differentiable.

    `emoji-preference` is scaled by 100 as HPSv2 is (Wu et al. 2023): a difference of 1 between two images of a prompt
    is odds of e to 1 that the higher one is picked. `emoji-scene` is scaled alike.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        folder, self.scale = NETWORKS[config.kind]
        self.where, option = f"reward {config.kind!r}", "the package's files"
        self.clip = load_pretrained(CLIPModel, str(FOLDER / folder), where=self.where, option=option)
        self.tokenizer = load_tokenizer(
            CLIPTokenizer, str(FOLDER / "model" / "tokenizer"), where=self.where, option=option
        )
        self.relative = RelativePrompt()
        if isinstance(config, EmojiClipConfig):
            self.relative = RelativePrompt(config.positive, config.negative, config.k)
        self.memory = TextFeatureCache()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            texts = self.text_features(prompts, images.device)
            scores: Tensor = self.scale * (self.image_features(images) * texts).sum(1)
        return scores

    def image_features(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of unit length of images (B, 3, H, W) in [0, 1]."""
        pixels = normalize(resize_like_pil(images, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
        # Not `get_image_features`: what that returns differs between transformers 4 and 5.
        return unit_length(self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output))

    def text_features(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embeddings (N, D) of unit length, each made once; with control words, the sum that images are scored by."""
        return self.memory(
            texts, lambda text: self.relative(text, lambda full: self._text_features(full, device)), device
        )

    def _text_features(self, text: str, device: torch.device) -> Tensor:
        tokens = self.tokenizer([text], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        outputs = self.clip.text_model(input_ids=tokens["input_ids"].to(device))
        features: Tensor = self.clip.text_projection(outputs.pooler_output)
        return unit_length(features)[0]
