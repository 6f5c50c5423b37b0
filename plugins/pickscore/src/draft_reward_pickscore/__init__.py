"""PickScore: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RelativePromptConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["PickScoreConfig", "draft_register_rewards"]


class PickScoreConfig(RelativePromptConfig):
    """Options of `pickscore`: which of two images for a prompt people would pick."""

    kind: Literal["pickscore"] = "pickscore"
    weights: Annotated[str, RecipePath(("hub", "random"), of="folder")] = Field(
        "hub",
        description='The model: "hub" for the published one, hf://owner/name or a local folder for another CLIPModel '
        'of transformers, "random" for a tiny seeded one.',
    )
    tokenizer: Annotated[str, RecipePath(("hub", "bytes"), of="folder")] = Field(
        "hub",
        description='Its tokenizer: "hub", hf://owner/name, a local folder, or "bytes" for tests without a vocabulary.',
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of both encoders; their cosine is always float32."
    )
    seed: int = Field(0, description='Of "random" weights.')


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution."""
    return [
        RewardSpec(
            kind="pickscore",
            summary="PickScore v1: which image for a prompt people would pick",
            config=PickScoreConfig,
            factory="draft_reward_pickscore.reward:PickScoreReward",
            unit="logit; a difference of 1 is odds of e to 1",
            score_range="(-100, 100), usually 18 to 24",
            needs_prompt=True,
            native_size=224,
            code_license="Apache-2.0",
            weights_license="not declared (the model's card names none)",
            download_mb=3950,
            small={"weights": "random", "tokenizer": "bytes"},
            reference="draft_reward_pickscore.reference:reference",
            tolerance=0.002,
        )
    ]
