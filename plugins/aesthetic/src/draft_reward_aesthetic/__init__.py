"""LAION's aesthetic predictor: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["AestheticConfig", "draft_register_rewards"]


class AestheticConfig(RewardConfig):
    """Options of `aesthetic`: the rating that people would give an image, whatever it shows."""

    kind: Literal["aesthetic"] = "aesthetic"
    head: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        "hub",
        description='The rating head: "hub" for LAION\'s published one, hf://owner/name/file or a local path for '
        'another of its shape, "random" for a seeded one.',
    )
    clip: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        "hub",
        description='OpenAI\'s CLIP in open_clip\'s format: "hub", hf://owner/name/file, a local path, or "random".',
    )
    architecture: Literal["ViT-L-14", "tiny"] = Field(
        "ViT-L-14", description='Size of the CLIP; "tiny" is for random weights.'
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the image tower; the head is always float32."
    )
    seed: int = Field(0, description='Of "random" weights.')


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution."""
    return [
        RewardSpec(
            kind="aesthetic",
            summary="LAION aesthetic predictor v2: how people would rate the image",
            config=AestheticConfig,
            factory="draft_reward_aesthetic.reward:AestheticReward",
            unit="rating, 1 to 10 in the training data",
            score_range="(-inf, inf), photographs about 4.5 to 6.5",
            native_size=224,
            code_license="Apache-2.0",
            weights_license="MIT (CLIP), Apache-2.0 (head)",
            download_mb=1714,
            small={"clip": "random", "head": "random", "architecture": "tiny"},
            reference="draft_reward_aesthetic.reference:reference",
            tolerance=0.002,
        )
    ]
