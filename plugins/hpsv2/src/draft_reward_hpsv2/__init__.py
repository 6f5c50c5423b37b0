"""The Human Preference Score: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RelativePromptConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["Hpsv2Config", "draft_register_rewards"]


class Hpsv2Config(RelativePromptConfig):
    """Options of `hpsv2`: how well people would like an image for its prompt."""

    kind: Literal["hpsv2"] = "hpsv2"
    version: Literal["2.0", "2.1"] = Field(
        "2.1", description="Which published weights; scores of the two cannot be compared."
    )
    weights: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        "hub",
        description='"hub" for the published file of this version, hf://owner/name/file or a local path for another, '
        '"random" for seeded ones.',
    )
    architecture: Literal["ViT-H-14", "tiny"] = Field(
        "ViT-H-14", description='Size of the CLIP; "tiny" is for random weights.'
    )
    antialias: bool = Field(
        True, description="Whether shrinking is antialiased; the reference was not with torchvision before 0.17."
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
            kind="hpsv2",
            summary="Human Preference Score v2 and v2.1: how well people like an image for its prompt",
            config=Hpsv2Config,
            factory="draft_reward_hpsv2.reward:Hpsv2Reward",
            unit="cosine; published tables show it times 100",
            score_range="(-1, 1), usually 0.2 to 0.35",
            needs_prompt=True,
            native_size=224,
            code_license="Apache-2.0",
            weights_license="Apache-2.0",
            download_mb=1970,
            small={"weights": "random", "architecture": "tiny"},
            reference="draft_reward_hpsv2.reference:reference",
            tolerance=2e-5,  # a difference of two cosines, as control words make it, spreads less than a cosine
        )
    ]
