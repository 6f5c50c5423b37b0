"""Similarity to reference images: names the rewards and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import model_validator

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = [
    "SimilarityConfig",
    "SimilarityPerPromptConfig",
    "SimilarityToConfig",
    "draft_register_rewards",
]

EXAMPLES = Path(__file__).with_name("examples")
SIDE = 256


class SimilarityToConfig(RewardConfig):
    """What both kinds say: how two images are compared."""

    model: Literal["dinov2", "lpips-alex", "lpips-vgg", "lpips-squeeze"] = Field(
        "dinov2",
        description='What compares: "dinov2" what the images show (cosine of DINOv2\'s class token), "lpips-..." how '
        "they look, place by place (minus the LPIPS distance, with the backbone AlexNet, VGG-16 or SqueezeNet).",
    )
    weights: Annotated[str, RecipePath(("hub", "random"), of="either")] = Field(
        "hub",
        description='"hub" for facebook/dinov2-base, or the backbone that torchvision publishes; for DINOv2 also '
        'hf://owner/name or a local folder, for LPIPS the path of a backbone\'s file; "random" for seeded ones.',
    )
    side: int | None = Field(
        None,
        ge=64,
        le=4096,
        description=f"LPIPS only: both images are squashed to a square of this side in pixels; left out, {SIDE}.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the network; what is compared is always float32."
    )
    seed: int = Field(0, ge=0, description='Of "random" weights.')

    @model_validator(mode="after")
    def _side_is_for_lpips(self) -> Any:
        if self.side is not None and self.model == "dinov2":
            raise ValueError("`side` is for LPIPS; DINOv2 has a size of its own, so leave it out")
        return self


class SimilarityConfig(SimilarityToConfig):
    """Options of `similarity`: how much an image is like one reference image."""

    kind: Literal["similarity"] = "similarity"
    reference: Annotated[str, RecipePath(of="file")] = Field(
        min_length=1, description="The image file that all images are compared with, whatever their prompt."
    )


class SimilarityPerPromptConfig(SimilarityToConfig):
    """Options of `similarity-per-prompt`: how much an image is like the reference image beside its prompt."""

    kind: Literal["similarity-per-prompt"] = "similarity-per-prompt"


def _spec(kind: str, summary: str, config: type[RewardConfig], factory: str, **more: Any) -> RewardSpec:
    return RewardSpec(
        kind=kind,
        summary=summary,
        config=config,
        factory=f"draft_reward_similarity.reward:{factory}",
        unit="cosine for dinov2, minus a distance for lpips",
        score_range="[-1, 1] for dinov2, (-inf, 0] for lpips",
        code_license="Apache-2.0",
        weights_license="Apache-2.0 (DINOv2); BSD-2-Clause (heads of LPIPS), BSD-3-Clause (backbones of torchvision)",
        download_mb=346,
        reference="draft_reward_similarity.reference:reference",
        tolerance=0.002,
        **more,
    )


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The two rewards of this distribution."""
    return [
        _spec(
            "similarity",
            "how much an image is like a reference image, by DINOv2 or LPIPS",
            SimilarityConfig,
            "SimilarityReward",
            small={"reference": str(EXAMPLES / "disc.png"), "weights": "random"},
        ),
        _spec(
            "similarity-per-prompt",
            "how much an image is like the reference image in the prompt's row, by DINOv2 or LPIPS",
            SimilarityPerPromptConfig,
            "SimilarityPerPromptReward",
            columns={"reference": "image"},
            small={"weights": "random"},
        ),
    ]
