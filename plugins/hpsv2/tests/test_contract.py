"""The reward keeps the contract of draft-core, with and without antialiasing."""

from draft_core.testing import RewardContract


class TestHpsv2(RewardContract):
    kind = "hpsv2"


class TestHpsv2Legacy(RewardContract):
    kind = "hpsv2"
    config = {"weights": "random", "architecture": "tiny", "version": "2.0", "antialias": False}  # noqa: RUF012
