"""Which of the embedded model's things an image shows, by a small residual network that no model is tuned on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import ResNetForImageClassification

from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import normalize, resize_like_pil
from draft_core.rewards.weights import load_pretrained
from draft_emoji.configs import EmojiJudgeConfig, EmojiJudgeTop1Config
from draft_emoji.thing_words import JUDGE, named_thing

SIDE = 64


class EmojiJudge(FrozenModule):
    """Log-probability of the prompt's thing among all 274, or whether it is the likeliest of them."""

    def __init__(self, config: EmojiJudgeConfig | EmojiJudgeTop1Config) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.top1 = isinstance(config, EmojiJudgeTop1Config)
        self.network = load_pretrained(
            ResNetForImageClassification, str(JUDGE), where=self.where, option="the package's files"
        )
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]: log-probabilities; of top-1, 1 or 0.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt, or a prompt names
                none of the things, or several.
        """
        images = checked_images(images, prompts, where=self.where)
        things = torch.tensor([named_thing(prompt, where=self.where) for prompt in prompts], device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.network(normalize(resize_like_pil(images, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)).logits
        if self.top1:
            scores: Tensor = (logits.argmax(1) == things).float()
        else:
            scores = logits.log_softmax(1).gather(1, things[:, None])[:, 0]
        return scores
