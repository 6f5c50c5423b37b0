"""Human Preference Score v3: names the reward and its options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl
from draft_reward_hpsv3.marks import refuse_marks

DRAFT_API_VERSION = 2

__all__ = ["Hpsv3Config", "draft_register_rewards"]


class Hpsv3Config(RewardConfig):
    """Options of `hpsv3`: how well people would like an image for its prompt, by a vision-language model."""

    kind: Literal["hpsv3"] = "hpsv3"
    weights: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        "hub",
        description='"hub" for the published file, hf://owner/name/file or a local path for another, "random" for '
        "seeded ones.",
    )
    architecture: Literal["7b", "tiny"] = Field(
        "7b", description='Size of the model: "7b" as published; "tiny" is for random weights.'
    )
    tokenizer: Annotated[str, RecipePath(("hub", "bytes"), of="folder")] = Field(
        "hub",
        description='Tokenizer of the base model: "hub", hf://owner/name, a local folder, or "bytes" for tests without '
        "a vocabulary.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Precision of the vision-language model; the head is always float32."
    )
    seed: int = Field(0, description='Of "random" weights.')

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that hold one of the model's own marks."""
        for prompt in prompts:
            refuse_marks(prompt, where=f"reward {self.kind!r}")


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The one reward of this distribution."""
    return [
        RewardSpec(
            kind="hpsv3",
            summary="Human Preference Score v3: how well people like an image for its prompt, by a model of 7 B",
            config=Hpsv3Config,
            factory="draft_reward_hpsv3.reward:Hpsv3Reward",
            unit="mean of the preference's normal distribution",
            score_range="(-inf, inf), usually 0 to 15",
            needs_prompt=True,
            native_size=448,
            code_license="Apache-2.0 (its instruction: MIT)",
            weights_license="not declared (the code that published them is MIT, the base model Apache-2.0)",
            download_mb=16_600,
            small={"weights": "random", "architecture": "tiny", "tokenizer": "bytes", "dtype": "float32"},
            reference="draft_reward_hpsv3.reference:reference",
            tolerance=0.002,
        )
    ]
