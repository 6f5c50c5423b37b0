"""Questions to a vision-language model: their type, and the sets that are shipped by name. It imports no torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from draft_core.plugin import Config, Field

PROMPT = "{prompt}"
VQASCORE = 'Does this figure show "{prompt}"? Please answer Yes or No.'  # Lin et al. 2024, arXiv 2404.01291


class Question(Config):
    """One question about an image, the answer that is wanted, and how the model's belief in it is counted."""

    ask: str = Field(min_length=1, description="The question; {prompt} in it stands for the image's prompt.")
    answer: str = Field(
        "Yes",
        min_length=1,
        description="The wanted answer; with score log-probability it may be a whole text, {prompt} included.",
    )
    against: tuple[str, ...] = Field(
        ("No",), description="The other answers, for score contrast; the others do without them."
    )
    score: Literal["contrast", "probability", "log-probability"] = Field(
        "contrast",
        description="contrast: log p(answer) - log p(any of against), whose gradient stays where the model is sure; "
        "probability: p(answer), in [0, 1]; log-probability: log p of the answer, the mean over its tokens.",
    )
    weight: float = Field(1.0, description="In the weighted mean over the questions; negative where a no is wanted.")
    name: str | None = Field(
        None, min_length=1, description="What the report calls its score; left out, the question's number."
    )

    @field_validator("ask", "answer")
    @classmethod
    def _known_places(cls, text: str) -> str:
        if unknown := [place for place in re.findall(r"\{\w*\}", text) if place != PROMPT]:
            raise ValueError(f"{unknown[0]} stands for nothing; only {PROMPT} does")
        return text

    @model_validator(mode="after")
    def _fits(self) -> Question:
        if not self.weight:
            raise ValueError("weight is 0; leave the question out")
        if self.score != "contrast" and "against" in self.model_fields_set:
            raise ValueError(f"against is given, which score {self.score} does not use; leave it out")
        if self.score == "contrast" and not self.against:
            raise ValueError("against is empty; name the answers that are not wanted")
        if self.score == "contrast" and self.answer in self.against:
            raise ValueError(f"{self.answer!r} is both the answer and one of those against it")
        if self.score != "log-probability" and PROMPT in self.answer:
            raise ValueError(f"the answer has {PROMPT}, many tokens; set score to log-probability")
        return self


def _set(**asked: str) -> tuple[Question, ...]:
    return tuple(Question(name=name.replace("_", " "), ask=f"{ask} Answer Yes or No.") for name, ask in asked.items())


# Question sets by name. Several aspects resist a collapse that one question alone invites (Diffusion-DRF, 2601.04153).
SETS: dict[str, tuple[Question, ...]] = {
    "alignment": _set(
        content='Is everything that the description "{prompt}" names visible here?',
        attributes='Do colours, numbers and materials fit the description "{prompt}"?',
        relations='Are the things placed, and do they act, as the description "{prompt}" says?',
        nothing_else='Is "{prompt}" a complete description, with no other main subject in view?',
    ),
    "physics": _set(
        support="Is everything that should rest on something, or hang from it, supported in a believable way?",
        shapes="Do solid things keep their shape, without melting into one another?",
        bodies="Do all people and animals have bodies that could exist, with the right number of limbs?",
        light="Do shadows and reflections agree with where the light comes from?",
    ),
    "quality": _set(
        sharpness="Is the main subject in focus and rich in detail?",
        cleanness="Is this free of noise, blotches, stripes and other artefacts?",
        composition="Is this well composed, with nothing important cut off?",
        naturalness="Are colours and contrast natural rather than exaggerated?",
    ),
}
