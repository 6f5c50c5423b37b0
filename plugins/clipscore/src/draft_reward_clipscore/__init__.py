"""CLIPScore: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import field_validator, model_validator

from draft_core.plugin import Field, RecipePath, RelativePromptConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["ClipScoreConfig", "draft_register_rewards"]


class ClipScoreConfig(RelativePromptConfig):
    """Options of `clipscore`: how well an image fits its prompt in the eyes of a CLIP."""

    kind: Literal["clipscore"] = "clipscore"
    definition: Literal["clipscore", "percent", "cosine"] = Field(
        "clipscore",
        description='What is done with the cosine: "clipscore" 2.5 max(cos, 0), as its paper defines it; "percent" '
        '100 max(cos, 0), as torchmetrics does; "cosine" nothing.',
    )
    prefix: str | None = Field(
        None,
        description='What is put before the prompt, with a blank between them; if left out "A photo depicts" for the '
        'definition "clipscore", as in its paper, and nothing for the others.',
    )
    library: Literal["open_clip", "transformers"] = Field("open_clip", description="Which library's CLIP it is.")
    model: Annotated[str, RecipePath(("tiny",), of="folder", absent="keep")] = Field(
        "ViT-B-32-quickgelu",
        description="For open_clip the name of an architecture, for transformers a CLIPModel as hf://owner/name or a "
        'local folder; for either "tiny", with random weights.',
    )
    weights: Annotated[str, RecipePath(("random",), of="file", absent="keep")] = Field(
        "openai",
        description='For open_clip: one of its tags for the architecture, a local path, or "random"; for transformers '
        '"random" with the tiny model, else nothing.',
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of both encoders; their cosine is always float32."
    )
    seed: int = Field(0, description='Of "random" weights.')

    @field_validator("prefix")
    @classmethod
    def _with_a_blank(cls, prefix: str | None) -> str | None:
        return f"{prefix} " if prefix and not prefix[-1].isspace() else prefix

    @model_validator(mode="after")
    def _relative_scores_keep_their_sign(self) -> ClipScoreConfig:
        if self.positive is not None and self.definition != "cosine":
            raise ValueError(
                f"the definition {self.definition!r} makes zero of what is negative, as scores relative to control "
                "words often are; set definition to cosine"
            )
        return self


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution."""
    return [
        RewardSpec(
            kind="clipscore",
            summary="CLIPScore: how well the image fits its prompt, with any CLIP of open_clip or transformers",
            config=ClipScoreConfig,
            factory="draft_reward_clipscore.reward:ClipScoreReward",
            unit="cosine times 2.5, 100 or 1, by definition",
            score_range="[0, 2.5] for clipscore, [0, 100] for percent, [-1, 1] for cosine",
            needs_prompt=True,
            native_size=224,
            code_license="Apache-2.0",
            weights_license="MIT (the default model); that of the model chosen",
            download_mb=605,
            # Cosines: those of random weights may be negative, where the other definitions are zero.
            small={"model": "tiny", "weights": "random", "definition": "cosine"},
            reference="draft_reward_clipscore.reference:reference",
            tolerance=0.002,
        )
    ]
