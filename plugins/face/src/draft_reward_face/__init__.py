"""Faces under MTCNN: names the reward, its metric and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["FaceConfig", "FaceCountConfig", "MtcnnConfig", "draft_register_rewards"]

Probability = Annotated[float, Field(gt=0, lt=1)]


class MtcnnConfig(RewardConfig):
    """What both kinds say about the detector."""

    min_face_size: int = Field(20, ge=12, description="Side of the smallest face that is looked for, in pixels.")
    thresholds: tuple[Probability, Probability, Probability] = Field(
        (0.6, 0.7, 0.7), description="Probability above which a candidate passes each of the three stages."
    )
    weights: Annotated[str, RecipePath(("package", "random"), of="folder")] = Field(
        "package",
        description='"package" for those in the installed package facenet-pytorch, the path of a folder with pnet.pt, '
        'rnet.pt and onet.pt, "random" for seeded ones.',
    )
    seed: int = Field(0, ge=0, description='Of "random" weights.')


class FaceConfig(MtcnnConfig):
    """Options of `face`: how face-like the best place of an image is."""

    kind: Literal["face"] = "face"


class FaceCountConfig(MtcnnConfig):
    """Options of `face-count`: how many faces are found, without a gradient."""

    kind: Literal["face-count"] = "face-count"


def _spec(kind: str, summary: str, config: type[RewardConfig], factory: str, **more: Any) -> RewardSpec:
    return RewardSpec(
        kind=kind,
        summary=summary,
        config=config,
        factory=f"draft_reward_face.reward:{factory}",
        code_license="Apache-2.0",
        weights_license="MIT",
        small={"weights": "random", "min_face_size": 30},
        **more,
    )


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution, and the metric beside it."""
    return [
        _spec(
            "face",
            "how face-like the best place of an image is, under the detector MTCNN",
            FaceConfig,
            "FaceReward",
            unit="nat",
            score_range="(-inf, 0]",
            reference="draft_reward_face.reference:reference",
            tolerance=0.002,
        ),
        _spec(
            "face-count",
            "how many faces the detector MTCNN finds",
            FaceCountConfig,
            "FaceCount",
            unit="face",
            score_range="0, 1, 2, ...",
            differentiable=False,
        ),
    ]
