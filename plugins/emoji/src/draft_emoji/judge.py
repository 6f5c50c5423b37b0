"""Which of the embedded model's things an image shows, by a small residual network that no model is tuned on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import ResNetForImageClassification

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import normalize, resize_like_pil
from draft_core.rewards.weights import load_pretrained
from draft_emoji import FOLDER, EmojiJudgeConfig, EmojiJudgeTop1Config

SIDE = 64


class EmojiJudge(FrozenModule):
    """Log-probability of the prompt's thing among all 274, or whether it is the likeliest of them."""

    def __init__(self, config: EmojiJudgeConfig | EmojiJudgeTop1Config) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.top1 = isinstance(config, EmojiJudgeTop1Config)
        self.network = load_pretrained(
            ResNetForImageClassification, str(FOLDER / "judge"), where=self.where, option="the package's files"
        )
        self.things = {name: int(number) for number, name in self.network.config.id2label.items()}
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]: log-probabilities; of top-1, 1 or 0.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt, or a prompt names
                none of the things, or several.
        """
        images = checked_images(images, prompts, where=self.where)
        things = torch.tensor([self.thing(prompt) for prompt in prompts], device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            logits = self.network(normalize(resize_like_pil(images, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)).logits
        if self.top1:
            scores: Tensor = (logits.argmax(1) == things).float()
        else:
            scores = logits.log_softmax(1).gather(1, things[:, None])[:, 0]
        return scores

    def thing(self, prompt: str) -> int:
        """The number of the thing that the prompt asks for, a part between commas as in "3d style, a red apple, fruit".

        Raises:
            RewardError: if no part is one of the things, or two are.
        """
        found = {self.things[part] for part in map(str.strip, prompt.lower().split(",")) if part in self.things}
        if len(found) != 1:
            raise RewardError(
                f"the prompt {prompt!r} names {'two of its' if found else 'none of its'} {len(self.things)} things",
                where=self.where,
                next="ask for one thing in the words of emoji-train or emoji-heldout: 'a fox', '3d style, a fox'",
            )
        return found.pop()
