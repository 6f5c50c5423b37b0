"""The published HPS v2 scoring, to compare the reward with: slow, on PIL images, without a gradient.

Its transform on torchvision and its use of open_clip, on the reward's own weights. The package `hpsv2` 1.2.0 lacks its
vocabulary file, so its transform is repeated here, not imported. Nothing but `draft rewards compare` and the tests
imports this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import open_clip
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor

from draft_core.rewards import RelativePrompt
from draft_core.rewards.images import CLIP_MEAN, CLIP_STD
from draft_reward_hpsv2 import Hpsv2Config
from draft_reward_hpsv2.reward import CLIP_NAME, SIDE, TINY, Hpsv2Reward


class ResizeMaxSize(torch.nn.Module):
    """The published resize: it runs after the conversion to a tensor."""

    def __init__(self, max_size: int, antialias: bool) -> None:
        super().__init__()
        self.max_size, self.antialias = max_size, antialias

    def forward(self, img: Tensor) -> Tensor:
        """(3, max_size, max_size) with black bars, of (3, H, W)."""
        height, width = img.shape[1:]
        scale = self.max_size / float(max(height, width))
        if scale != 1.0:
            new_size = [round(dim * scale) for dim in (height, width)]
            img = F.resize(img, new_size, InterpolationMode.BICUBIC, antialias=self.antialias)
            pad_h, pad_w = self.max_size - new_size[0], self.max_size - new_size[1]
            img = F.pad(img, padding=[pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
        return img


def reference(reward: Hpsv2Reward, config: Hpsv2Config) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The published scoring in float32 on the CPU, one image at a time."""
    model = open_clip.CLIP(**(TINY if config.architecture == "tiny" else open_clip.get_model_config(CLIP_NAME)))
    model.load_state_dict(reward.clip.state_dict())
    model.eval()
    preprocess = Compose([ToTensor(), ResizeMaxSize(SIDE, config.antialias), Normalize(CLIP_MEAN, CLIP_STD)])
    tokenizer = open_clip.get_tokenizer(CLIP_NAME)
    relative = RelativePrompt(config.positive, config.negative, config.k)

    def cosine(image: Image.Image, text: str) -> Tensor:
        image_features = model.encode_image(preprocess(image.convert("RGB"))[None], normalize=True)
        text_features = model.encode_text(tokenizer([text]), normalize=True)
        return torch.diagonal(image_features @ text_features.T)[0]

    @torch.no_grad()
    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        pairs = zip(images, prompts, strict=True)
        return torch.stack([relative(prompt, partial(cosine, image)) for image, prompt in pairs])

    return score
