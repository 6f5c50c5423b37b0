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

from draft_emoji import FOLDER, ClipConfig
from draft_emoji.alignment import SIDE, TOKENS, EmojiClip
from draft_emoji.contrast import Contrast

Score = Callable[[list[Image.Image], list[str]], Tensor]


def cosine(reward: EmojiClip, config: ClipConfig) -> Score:
    """CLIPModel's own cosine of an image that Pillow resized, one image at a time."""
    cosines = _cosines(reward)
    return _one_by_one(
        lambda image, prompt: reward.relative(prompt, lambda text: reward.scale * cosines(image, [text])[0])
    )


def _cosines(reward: EmojiClip) -> Callable[[Image.Image, list[str]], Tensor]:
    """Makes the cosines (N,) of one image with N texts, by transformers' model with the reward's weights."""
    model = CLIPModel.from_pretrained(FOLDER / "clip", dtype=torch.float32).eval()
    model.load_state_dict(reward.clip.state_dict())
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "model" / "tokenizer")

    @torch.no_grad()
    def cosines(image: Image.Image, texts: list[str]) -> Tensor:
        levels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = torch.from_numpy(levels / 255 * 2 - 1).permute(2, 0, 1)[None]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        outputs = model(input_ids=tokens["input_ids"], pixel_values=pixels)
        embeddings: tuple[Tensor, Tensor] = outputs.text_embeds, outputs.image_embeds
        return (embeddings[0] @ embeddings[1].T)[:, 0]

    return cosines


def _one_by_one(score_one: Callable[[Image.Image, str], Tensor]) -> Score:
    return lambda images, prompts: torch.stack([score_one(*pair) for pair in zip(images, prompts, strict=True)])


def contrast(reward: Contrast, config: ClipConfig) -> Score:
    """The log-probability of the prompt, the first of the choices, from the same model's cosines with all of them."""
    cosines = _cosines(reward)
    return _one_by_one(
        lambda image, prompt: torch.softmax(reward.scale * cosines(image, reward.choices(prompt)).double(), 0)[0].log()
    )
