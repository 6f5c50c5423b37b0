"""The rewards and their metric keep the contract of draft-core."""

from draft_core.testing import RewardContract


class TestDetection(RewardContract):
    kind = "detection"


class TestDetectionPerPrompt(RewardContract):
    kind = "detection-per-prompt"


class TestDetectionListed(RewardContract):
    kind = "detection-listed"


class TestDetectionFound(RewardContract):
    kind = "detection-found"
