"""Both rewards keep the contract of draft-core."""

from draft_core.testing import RewardContract


class TestOcr(RewardContract):
    kind = "ocr"


class TestOcrPerPrompt(RewardContract):
    kind = "ocr-per-prompt"
