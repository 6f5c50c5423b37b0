"""The same scores by the model's own `generate` on Pillow images: slow, without a gradient, one image at a time.

Preparation is the processor's own call, and probabilities are those that `generate` reports for its first token.
Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from draft_core.errors import DraftError
from draft_reward_vlm import ModelConfig
from draft_reward_vlm.reward import VlmReward


def generated(reward: VlmReward, config: ModelConfig) -> Callable[[list[Image.Image], list[str]], Tensor]:
    """The reward's questions put to `generate`, for questions whose answer is a single token.

    Raises:
        DraftError: if a question counts whole answers, which `generate` gives no probability of.
    """
    if any(question.score == "log-probability" for question in reward.questions):
        raise DraftError("whole answers cannot be compared with generate", where=reward.where)

    @torch.no_grad()
    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return torch.tensor([_one(reward, *pair) for pair in zip(images, prompts, strict=True)])

    return score


def _one(reward: VlmReward, image: Image.Image, prompt: str) -> float:
    total = 0.0
    for question in reward.questions:
        text = reward.critic.text_of(question.ask.replace("{prompt}", prompt), (3, image.height, image.width))
        logs = first_token(reward.critic.model, image, text)
        words = _first_tokens(reward.critic.model.processor.tokenizer, text)
        wanted = float(logs[words(question.answer)])
        if question.score == "probability":
            value = math.exp(wanted)
        else:
            value = wanted - math.log(sum(math.exp(float(logs[words(other)])) for other in question.against))
        total += question.weight * value
    return total / sum(abs(question.weight) for question in reward.questions)


def first_token(model: Any, image: Image.Image, text: str) -> Tensor:
    """Log-probabilities of the first generated token, (vocabulary,)."""
    inputs = model.processor(images=[image], text=[text], return_tensors="pt").to(model.device, model.dtype)
    found = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    scores: Tensor = found.scores[0][0]
    return scores.float().log_softmax(-1)


def _first_tokens(tokenizer: Any, text: str) -> Callable[[str], int]:
    """The token of a word after a text: that of the word after a blank, or at the start of a line."""

    def token(word: str) -> int:
        bare = text.endswith(("\n", ">"))
        found = tokenizer((">" if bare else "a ") + word, add_special_tokens=False)["input_ids"]
        return int(found[-1])

    return token
