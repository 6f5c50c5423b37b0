"""What this distribution offers, said without importing torch: listing rewards stays instant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from draft_core.plugin import Field, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2


class TemplateConfig(RewardConfig):
    """What a recipe can say about this reward; each field is typed, checked and described."""

    kind: Literal["template"] = "template"
    strength: float = Field(1.0, gt=0, description="Factor of the score.")


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The rewards of this distribution."""
    yield RewardSpec(
        kind="template",
        summary="how much warmer than cold an image is: red minus blue",
        config=TemplateConfig,
        factory="draft_reward_template.reward:TemplateReward",
        unit="level",
        score_range="[-1, 1] times the strength",
        code_license="Apache-2.0",
    )
