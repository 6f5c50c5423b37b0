"""Names the embedded text-to-image model and its prompt lists, so that a recipe can say `emoji`.

A naming file: it may import draft_core.plugin and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from draft_core.plugin import PretrainedSpec, hookimpl

FOLDER = Path(__file__).parent


@hookimpl
def draft_register_pretrained() -> Iterable[PretrainedSpec]:
    """The one pipeline that this distribution carries."""
    return [
        PretrainedSpec(
            alias="emoji",
            summary="64x64 emoji of 274 things in three styles; 21 MB, made for trying rewards on a CPU",
            folder=FOLDER / "model",
            license="Apache-2.0; trained on Noto Emoji (Apache-2.0) and Fluent Emoji (MIT)",
            prompts={
                "emoji-train": FOLDER / "prompts" / "emoji-train.txt",
                "emoji-heldout": FOLDER / "prompts" / "emoji-heldout.txt",
            },
        )
    ]
