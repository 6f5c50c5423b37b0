"""The published aesthetic predictor, to compare the reward with: slow, on PIL images, without a gradient.

Pillow, open_clip's transform and tower, and the head as in improved-aesthetic-predictor, on the reward's own weights.
Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image
from torch import Tensor

from draft_core.rewards.images import CLIP_MEAN, CLIP_STD
from draft_reward_aesthetic import AestheticConfig
from draft_reward_aesthetic.reward import CLIP_NAME, SIDE, TINY, AestheticReward


class PublishedHead(torch.nn.Module):
    """As in improved-aesthetic-predictor, with its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(768, 1024),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(1024, 128),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(128, 64),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(64, 16),
            torch.nn.Linear(16, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Ratings (B, 1) of embeddings (B, 768) of unit length."""
        rating: Tensor = self.layers(x)
        return rating


def reference(reward: AestheticReward, config: AestheticConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The published pipeline in float32 on the CPU, one image at a time; prompts are not read."""
    clip = open_clip.CLIP(**(TINY if config.architecture == "tiny" else open_clip.get_model_config(CLIP_NAME)))
    clip.visual.load_state_dict(reward.tower.state_dict())
    clip.eval()
    head = PublishedHead().eval()
    head.load_state_dict(reward.head.state_dict())
    preprocess = image_transform(SIDE, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)

    @torch.no_grad()
    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        scores = []
        for image in images:
            features = clip.encode_image(preprocess(image)[None])
            scores.append(head(torch.from_numpy(_normalized(features.numpy())).float())[0, 0])
        return torch.stack(scores)

    return score


def _normalized(a: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    l2 = np.atleast_1d(np.linalg.norm(a, 2, -1))
    l2[l2 == 0] = 1
    unit: npt.NDArray[np.float32] = a / np.expand_dims(l2, -1)
    return unit
