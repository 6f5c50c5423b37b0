"""ImageReward: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["ImageRewardConfig", "draft_register_rewards"]


class ImageRewardConfig(RewardConfig):
    """Options of `imagereward`: how highly people would rate an image for its prompt."""

    kind: Literal["imagereward"] = "imagereward"
    weights: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        "hub",
        description='"hub" for the published file, hf://owner/name/file or a local path for another, "random" for '
        "seeded ones.",
    )
    architecture: Literal["large", "tiny"] = Field(
        "large", description='Size of the networks: "large" as published; "tiny" is for random weights.'
    )
    tokenizer: Annotated[str, RecipePath(("hub", "characters"), of="folder")] = Field(
        "hub",
        description='BERT\'s tokenizer: "hub", hf://owner/name, a local folder, or "characters" for tests without a '
        "vocabulary.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of both encoders; the head is always float32."
    )
    seed: int = Field(0, description='Of "random" weights.')


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution."""
    return [
        RewardSpec(
            kind="imagereward",
            summary="ImageReward: how highly people would rate an image for its prompt",
            config=ImageRewardConfig,
            factory="draft_reward_imagereward.reward:ImageReward",
            unit="standard deviation of ratings, 0 at their mean",
            score_range="(-inf, inf), usually -2 to 2",
            needs_prompt=True,
            native_size=224,
            code_license="Apache-2.0",
            weights_license="Apache-2.0",
            download_mb=1790,
            small={"weights": "random", "architecture": "tiny", "tokenizer": "characters"},
            reference="draft_reward_imagereward.reference:reference",
            tolerance=0.002,
        )
    ]
