"""The reward and its metric keep the contract of draft-core."""

from draft_core.testing import RewardContract


class TestFace(RewardContract):
    kind = "face"


class TestFaceCount(RewardContract):
    kind = "face-count"
