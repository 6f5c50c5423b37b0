"""The PickScore of the model's card, to compare the reward with: slow, on PIL images, without a gradient.

transformers' processor on Pillow and its own features, on the reward's own weights. Nothing but
`draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from draft_core.rewards import RelativePrompt
from draft_reward_pickscore import PickScoreConfig
from draft_reward_pickscore.reward import TOKENS, PickScoreReward, clip_tokenizer

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor


def reference(reward: PickScoreReward, config: PickScoreConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The function that the model's card publishes, in float32 on the CPU, one image at a time."""
    model = copy.deepcopy(reward.clip).float().cpu()
    processor = CLIPProcessor(image_processor=ImageProcessor(), tokenizer=clip_tokenizer(config))

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str) -> Tensor:
        image_inputs = processor(images=[image], return_tensors="pt")
        text_inputs = processor(text=prompt, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        image_embs = model.get_image_features(**image_inputs)
        image_embs = getattr(image_embs, "pooler_output", image_embs)  # transformers 5 wraps the embedding
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**text_inputs)
        text_embs = getattr(text_embs, "pooler_output", text_embs)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        score: Tensor = (model.logit_scale.exp() * (text_embs @ image_embs.T))[0, 0]
        return score

    relative = RelativePrompt(config.positive, config.negative, config.k)

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        pairs = zip(images, prompts, strict=True)
        return torch.stack([relative(prompt, partial(score_one, image)) for image, prompt in pairs])

    return score
