"""The three rewards keep the contract of draft-core."""

from typing import ClassVar

from draft_core.testing import RewardContract


class TestMotion(RewardContract):
    kind = "motion"


class TestMotionOfANamedDirection(RewardContract):
    kind = "motion"
    config: ClassVar = {"direction": "growing", "background": "#808080", "contrast": 0.3}
    skip: ClassVar = {"prompts_count_as_declared": "a direction that is set leaves prompts unread"}


class TestFlicker(RewardContract):
    kind = "flicker"
