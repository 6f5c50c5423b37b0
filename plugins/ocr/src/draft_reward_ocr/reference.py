"""The score by Pillow, and by CTC's sum over paths in float64: slow, on PIL images, without a gradient.

Grey, crop and resize by Pillow, on the reward's own network; the probability of a text by the forward recursion over
plain probabilities, not by torch. Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from draft_reward_ocr import ReaderConfig
from draft_reward_ocr.reward import edges
from draft_reward_ocr.texts import LETTERS, quoted


def reference(reward: Any, config: ReaderConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The score in float64 on the CPU, one image at a time."""
    network = copy.deepcopy(reward.reader).cpu().double()

    @torch.no_grad()
    def score_one(image: Image.Image, prompt: str) -> Tensor:
        strip = image.convert("L").crop(edges(config.box, image.height, image.width))
        width = config.width or max(math.ceil(64 * strip.width / strip.height), 16)
        pixels = np.asarray(strip.resize((width, 64), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        probabilities = network(torch.from_numpy(pixels)[None, None])[0].exp().numpy()
        text = getattr(config, "text", None) or quoted(prompt, where="reference")
        return torch.tensor(math.log(probability(text, probabilities)) / len(text))

    return lambda images, prompts: torch.stack([score_one(*pair) for pair in zip(images, prompts, strict=True)])


def probability(text: str, probabilities: Any) -> float:
    """Of a text, summed over all ways to spread it with blanks over the columns (T, classes)."""
    path = [0]
    for letter in text:
        path += [1 + LETTERS.index(letter), 0]
    alpha = np.zeros(len(path))
    alpha[:2] = probabilities[0][path[:2]]
    for column in probabilities[1:]:
        before = alpha.copy()
        for place, label in enumerate(path):
            reached = before[place] + (before[place - 1] if place else 0)
            if place > 1 and label and label != path[place - 2]:
                reached += before[place - 2]
            alpha[place] = reached * column[label]
    return float(alpha[-1] + alpha[-2])
