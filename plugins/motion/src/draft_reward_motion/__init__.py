"""The motion of a video: names the rewards and their options, and imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import field_validator

from draft_core.plugin import Field, RewardConfig, RewardSpec, hookimpl
from draft_reward_motion.asked import motion_of

DRAFT_API_VERSION = 2

__all__ = ["FlickerConfig", "MotionConfig", "MotionFollowedConfig", "draft_register_rewards"]

SMALL_PROMPTS = ("a red apple moving left", "a fox moving up", "a star growing")
Direction = Literal["prompt", "left", "right", "up", "down", "growing", "shrinking"]

_HEX = re.compile(r"#[0-9a-fA-F]{6}")


class _TrackedConfig(RewardConfig):
    """What the rewards share that follow a thing before a plain background."""

    direction: Direction = Field(
        "prompt",
        description="The motion asked for; `prompt` reads it from each prompt: moving left, right, up or down, growing "
        "or shrinking.",
    )
    background: str = Field("#ffffff", description='The colour behind the thing, in quotes: "#ffffff".')

    @field_validator("background")
    @classmethod
    def _is_colour(cls, colour: str) -> str:
        if not _HEX.fullmatch(colour):
            raise ValueError(f'{colour!r} is no colour; write # and six hexadecimal digits, such as "#ffffff"')
        return colour.lower()

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that name no motion, or two, where it is read from them."""
        for prompt in prompts if self.direction == "prompt" else ():
            motion_of(prompt, where=f"reward {self.kind!r}")


class MotionConfig(_TrackedConfig):
    """Options of `motion`: how far a thing moves as asked for."""

    kind: Literal["motion"] = "motion"
    contrast: float = Field(
        0.2,
        gt=0,
        le=1,
        description="How far from the background, in levels of 0 to 1, a pixel counts half as a part of the thing.",
    )


class MotionFollowedConfig(_TrackedConfig):
    """Options of `motion-followed`: whether a thing moves as asked for."""

    kind: Literal["motion-followed"] = "motion-followed"
    contrast: float = Field(
        0.15,
        gt=0,
        le=1,
        description="How far from the background, in levels of 0 to 1, a pixel is a part of the thing.",
    )
    least: float = Field(
        10.0, gt=0, le=100, description="The least movement that counts, in percent of the frame's shorter side."
    )
    least_growth: float = Field(
        1.25,
        gt=1,
        le=100,
        description="The least factor of the thing's side that counts as growing; shrinking: 1 over it.",
    )


class FlickerConfig(RewardConfig):
    """Options of `flicker`: there are none."""

    kind: Literal["flicker"] = "flicker"


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The three rewards of motion, all of whole videos."""
    return [
        RewardSpec(
            kind="motion",
            takes="video",
            summary="how far a thing before a plain background moves, grows or shrinks as its prompt asks",
            config=MotionConfig,
            factory="draft_reward_motion.reward:MotionReward",
            unit="% of the side",
            needs_prompt=True,
            small_prompts=SMALL_PROMPTS,
            code_license="Apache-2.0",
        ),
        RewardSpec(
            kind="motion-followed",
            takes="video",
            summary="whether a thing before a plain background moves, grows or shrinks as its prompt asks",
            config=MotionFollowedConfig,
            factory="draft_reward_motion.followed:MotionFollowed",
            unit="share",
            score_range="0 or 1",
            differentiable=False,
            needs_prompt=True,
            small_prompts=SMALL_PROMPTS,
            code_license="Apache-2.0",
        ),
        RewardSpec(
            kind="flicker",
            takes="video",
            summary="minus the mean second difference of three frames in a row: how unsteady a video is",
            config=FlickerConfig,
            factory="draft_reward_motion.reward:FlickerReward",
            unit="-% of white",
            score_range="[-200, 0]",
            code_license="Apache-2.0",
        ),
    ]
