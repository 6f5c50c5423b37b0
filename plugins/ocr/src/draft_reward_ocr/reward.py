"""The rewards: how surely a text is read in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import resize_like_pil, round_straight_through
from draft_reward_ocr import OcrConfig, OcrPerPromptConfig, ReaderConfig
from draft_reward_ocr.reader import HEIGHT, load_reader, steps_needed
from draft_reward_ocr.texts import LETTERS, quoted

GREY = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in 65536ths (ITU-R 601)


class _Reading(FrozenModule):
    """A frozen reader of one place of an image."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.box, self.width = config.box, config.width
        self.reader = load_reader(config)
        self.requires_grad_(False).eval()

    def strips(self, images: Tensor) -> Tensor:
        """What the reader sees, (B, 1, 64, W) in [0, 1]: the box, in grey, resized as Pillow would."""
        height, width = images.shape[-2:]
        left, upper, right, lower = edges(self.box, height, width)
        levels = round_straight_through(images[..., upper:lower, left:right] * 255).clamp(0, 255)
        weights = levels.new_tensor(GREY).view(3, 1, 1)
        grey = round_straight_through((levels * weights).sum(1, keepdim=True) / 65536)
        kept = math.ceil(HEIGHT * (right - left) / (lower - upper))
        return resize_like_pil(grey / 255, HEIGHT, self.width or max(kept, 16))

    def read(self, images: Tensor, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Log-probability (B,) of a text for each image, divided by its letters.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or a text does not fit into the width.
        """
        images = checked_images(images, prompts, where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            log_probabilities = self.reader(self.strips(images))
            steps = log_probabilities.shape[1]
            for text in texts:
                if (needed := steps_needed(text)) > steps:
                    raise RewardError(
                        f"the text {text!r} takes {needed} columns, and the reader sees {steps}",
                        where=self.where,
                        next=f"set width to {4 * (needed + 1)} or more",
                    )
            classes = [1 + LETTERS.index(letter) for text in texts for letter in text]
            lengths = torch.tensor([len(text) for text in texts])
            negative: Tensor = ctc_loss(
                log_probabilities.transpose(0, 1),
                torch.tensor(classes, device=images.device),
                torch.full((len(texts),), steps),
                lengths,
                reduction="none",
            )
            return -negative / lengths.to(negative.device)


class OcrReward(_Reading):
    """How surely one text is read, differentiable; higher is surer.

    log p(text) under the reader, over all ways to space it (Graves et al. 2006, "Connectionist Temporal
    Classification", equation 3), divided by the number of letters.

    Raises:
        DraftError: if the weights are missing or do not fit.
    """

    def __init__(self, config: OcrConfig) -> None:
        super().__init__(config)
        self.text = config.text

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, or the text does not fit into them.
        """
        return self.read(images, prompts, [self.text] * len(images))


class OcrPerPromptReward(_Reading):
    """How surely the text is read that the prompt has in double quotes; otherwise like `OcrReward`."""

    def __init__(self, config: OcrPerPromptConfig) -> None:
        super().__init__(config)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: like `OcrReward`, or if a prompt has not one text in quotes.
        """
        return self.read(images, prompts, [quoted(prompt, where=self.where) for prompt in prompts])


def edges(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a box in pixels, at least one pixel wide and high."""
    left, upper = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, lower = max(round(box[2] * width), left + 1), max(round(box[3] * height), upper + 1)
    return left, upper, right, lower
