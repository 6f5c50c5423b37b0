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


class TestMotionFollowed(RewardContract):
    kind = "motion-followed"
    skip: ClassVar = {
        "prompts_count_as_declared": "0 or 1, and the kit's noise follows no motion; test_scores.py has clips that do",
        "frames_count": "likewise",
    }
