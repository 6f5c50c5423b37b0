"""JPEG compressibility: names the three JPEG rewards and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from draft_core.plugin import Field, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["JpegConfig", "JpegDistortionConfig", "JpegSizeConfig", "draft_register_rewards"]


class _EncoderSettings(RewardConfig):
    """What every JPEG reward must know about the encoder it speaks of."""

    quality: int = Field(80, ge=1, le=100, description="libjpeg's quality; DDPO's reward uses 95.")
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:2:0", description="How coarsely chroma is stored; Pillow's own default is 4:2:0."
    )
    direction: Literal["compress", "incompress"] = Field(
        "compress", description="Whether a small file scores high, or a large one."
    )


class JpegConfig(_EncoderSettings):
    """Options of `jpeg`: the file size in kB, counted from the quantised coefficients, with a gradient."""

    kind: Literal["jpeg"] = "jpeg"


class JpegDistortionConfig(_EncoderSettings):
    """Options of `jpeg-distortion`: the squared error that JPEG makes, a weak proxy kept for comparison."""

    kind: Literal["jpeg-distortion"] = "jpeg-distortion"


class JpegSizeConfig(_EncoderSettings):
    """Options of `jpeg-size`: the size of the file that Pillow writes, in kB, without a gradient."""

    kind: Literal["jpeg-size"] = "jpeg-size"


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The three rewards of this distribution."""
    return [
        RewardSpec(
            kind="jpeg",
            surrogate_gradient=True,
            summary="JPEG file size, counted to the bit, with a gradient",
            config=JpegConfig,
            factory="draft_reward_jpeg.reward:JpegReward",
            reference="draft_reward_jpeg.reference:file_size",
            tolerance=0.1,
            unit="kB of 1000 bytes",
            score_range="(-inf, -0.6) for compress, (0.6, inf) for incompress",
            code_license="Apache-2.0",
        ),
        RewardSpec(
            kind="jpeg-distortion",
            surrogate_gradient=True,
            summary="squared error that JPEG makes, for comparison only",
            config=JpegDistortionConfig,
            factory="draft_reward_jpeg.reward:JpegDistortionReward",
            reference="draft_reward_jpeg.reference:distortion",
            tolerance=0.2,
            unit="squared L2 distance",
            score_range="(-inf, 0] for compress, [0, inf) for incompress",
            code_license="Apache-2.0",
        ),
        RewardSpec(
            kind="jpeg-size",
            summary="JPEG file size, as Pillow writes it",
            config=JpegSizeConfig,
            factory="draft_reward_jpeg.reward:JpegSizeReward",
            unit="kB of 1000 bytes",
            score_range="(-inf, -0.6) for compress, (0.6, inf) for incompress",
            differentiable=False,
            code_license="Apache-2.0",
        ),
    ]
