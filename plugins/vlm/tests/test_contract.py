"""Both rewards keep the contract of draft-core."""

from draft_core.testing import RewardContract


class TestVlm(RewardContract):
    kind = "vlm"


class TestVqaScore(RewardContract):
    kind = "vqascore"
