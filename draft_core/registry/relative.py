"""The fields of a reward that scores an image for a prompt with control words for and against it."""

from __future__ import annotations

import re
from typing import TypeVar

from pydantic import field_validator, model_validator

from draft_core.prompt_rows import PLACE
from draft_core.registry.config import Field, RewardConfig

__all__ = ["RelativePromptConfig"]

Self = TypeVar("Self", bound="RelativePromptConfig")


class RelativePromptConfig(RewardConfig):
    """What a reward on text features can say beside the common fields: two texts, and how much the first counts.

    The score is f . ((1 + k) t+ - t-), where f, t+ and t- are the features of unit length of the image and of both
    texts: `draft_core.rewards.RelativePrompt` computes it. Shen et al. 2025, "Directly Aligning the Full Diffusion
    Trajectory with Fine-Grained Human Preference", arXiv 2509.06942 (SRPO).
    """

    positive: str | None = Field(
        None,
        description="Score relative to control words: those for it. {prompt} stands for the prompt; without it they "
        "stand before the prompt, with a blank between.",
    )
    negative: str | None = Field(None, description="The control words against it, joined with the prompt likewise.")
    k: float | None = Field(
        None, ge=0, description="By how much more the text with `positive` counts: 1 + k times; left out 0."
    )

    @field_validator("positive", "negative")
    @classmethod
    def _only_the_prompt_is_filled_in(cls, words: str | None) -> str | None:
        if words is not None and not words.strip():
            raise ValueError(f"it has no words; write {PLACE} for the prompt alone")
        if unknown := [found for found in re.findall(r"\{\w*\}", words or "") if found != PLACE]:
            raise ValueError(f"{unknown[0]} stands for nothing; write {PLACE} where the prompt belongs")
        return words

    @model_validator(mode="after")
    def _two_different_texts(self: Self) -> Self:
        if (self.positive is None) != (self.negative is None):
            given, lacks = ("negative", "positive") if self.positive is None else ("positive", "negative")
            raise ValueError(f"{given} is given without {lacks}; give both, or write {PLACE} for the prompt alone")
        if self.k is not None and self.positive is None:
            raise ValueError("k is given without positive and negative, which it weighs; give them, or leave it out")
        if self.positive is not None and self.positive == self.negative:
            raise ValueError("positive and negative are the same; give different words")
        return self
