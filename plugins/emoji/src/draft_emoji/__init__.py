"""Names the embedded text-to-image model, its prompt lists and its alignment score, so that a recipe can say them.

A naming file: it may import draft_core.plugin and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from draft_core.plugin import PretrainedSpec, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

FOLDER = Path(__file__).parent
LICENSE = "Apache-2.0; trained on Noto Emoji (Apache-2.0) and Fluent Emoji (MIT)"


class EmojiClipConfig(RewardConfig):
    """Options of `emoji-clip`: there are none."""

    kind: Literal["emoji-clip"] = "emoji-clip"


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """Whether an image of the embedded model shows its prompt."""
    return [
        RewardSpec(
            kind="emoji-clip",
            summary="whether an emoji shows what its prompt says, by a CLIP of 2.7 M parameters that knows emoji only",
            config=EmojiClipConfig,
            factory="draft_emoji.alignment:EmojiClipReward",
            unit="cosine",
            score_range="[-1, 1]",
            needs_prompt=True,
            native_size=64,
            code_license="Apache-2.0",
            weights_license=LICENSE,
            reference="draft_emoji.reference:reference",
            tolerance=0.002,
        )
    ]


@hookimpl
def draft_register_pretrained() -> Iterable[PretrainedSpec]:
    """The one pipeline that this distribution carries."""
    return [
        PretrainedSpec(
            alias="emoji",
            summary="64x64 emoji of 274 things in three styles; 22 MB, made for trying rewards on a CPU",
            folder=FOLDER / "model",
            license=LICENSE,
            call={"num_inference_steps": 20, "guidance_scale": 4.0},
            prompts={
                "emoji-train": FOLDER / "prompts" / "emoji-train.txt",
                "emoji-heldout": FOLDER / "prompts" / "emoji-heldout.txt",
            },
        )
    ]
