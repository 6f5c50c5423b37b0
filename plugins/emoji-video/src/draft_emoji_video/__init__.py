"""Names the embedded text-to-video model and its prompt lists, so that a recipe can say them.

A naming file: it may import draft_core.plugin and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from draft_core.plugin import PretrainedSpec, hookimpl

DRAFT_API_VERSION = 2

FOLDER = Path(__file__).parent
LICENSE = "Apache-2.0; trained on Noto Emoji (Apache-2.0) and Fluent Emoji (MIT)"


@hookimpl
def draft_register_pretrained() -> Iterable[PretrainedSpec]:
    """The pipeline that this distribution carries."""
    return [
        PretrainedSpec(
            alias="emoji-video",
            summary="64x64 videos of 8 frames: one emoji of 65 that moves, grows or shrinks; made for a CPU",
            folder=FOLDER / "model",
            license=LICENSE,
            call={
                "num_inference_steps": 10,
                "guidance_scale": 3.0,
                "num_frames": 8,
                "height": 64,
                "width": 64,
            },
            prompts={name: FOLDER / "prompts" / f"{name}.txt" for name in ("video-train", "video-heldout")},
        ),
    ]
