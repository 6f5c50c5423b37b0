"""The reward keeps the contract of draft-core."""

from draft_core.testing import RewardContract


class TestImageReward(RewardContract):
    kind = "imagereward"
