"""The CLIP scores in transformers' and Pillow's own words, to compare the reward with: slow, without a gradient.

Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from draft_emoji import FOLDER, EmojiClipConfig, EmojiPreferenceConfig, SceneConfig
from draft_emoji.alignment import SIDE, TOKENS, EmojiClip


def reference(
    reward: EmojiClip, config: EmojiClipConfig | EmojiPreferenceConfig | SceneConfig
) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """CLIPModel's own cosine of an image that Pillow resized, one image at a time."""
    model = CLIPModel.from_pretrained(FOLDER / "clip", dtype=torch.float32).eval()
    model.load_state_dict(reward.clip.state_dict())
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "model" / "tokenizer")

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str) -> Tensor:
        levels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = torch.from_numpy(levels / 255 * 2 - 1).permute(2, 0, 1)[None]
        tokens = tokenizer([prompt], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        outputs = model(input_ids=tokens["input_ids"], pixel_values=pixels)
        cosine: Tensor = reward.scale * (outputs.image_embeds * outputs.text_embeds).sum()
        return cosine

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return torch.stack([score_one(*pair) for pair in zip(images, prompts, strict=True)])

    return score
