"""The reward keeps the contract of draft-core."""

from draft_core.testing import RewardContract


class TestHpsv3(RewardContract):
    kind = "hpsv3"
