"""Both rewards keep the contract of draft-core, with either way to compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from draft_reward_similarity import EXAMPLES

from draft_core.testing import RewardContract


class TestSimilarity(RewardContract):
    kind = "similarity"


class TestLpips(RewardContract):
    kind = "similarity"
    config: ClassVar[Mapping[str, Any]] = {
        "reference": str(EXAMPLES / "disc.png"),
        "model": "lpips-squeeze",
        "weights": "random",
        "side": 64,
    }


class TestSimilarityPerPrompt(RewardContract):
    kind = "similarity-per-prompt"
