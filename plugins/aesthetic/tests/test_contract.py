"""The reward keeps the contract of draft-core."""

from draft_core.testing import RewardContract


class TestAesthetic(RewardContract):
    kind = "aesthetic"
    config = {"clip": "random", "head": "random", "architecture": "tiny"}  # noqa: RUF012 declared ClassVar above
