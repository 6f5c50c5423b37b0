"""The reward keeps the contract of draft-core with both libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from draft_core.testing import RewardContract


class TestClipScore(RewardContract):
    kind = "clipscore"
    # A seed whose cosines are positive, as trained models' are: where they are not, clamping leaves no gradient.
    config = {"model": "tiny", "weights": "random", "definition": "clipscore", "seed": 7}  # noqa: RUF012 declared ClassVar above


class TestTransformers(RewardContract):
    kind = "clipscore"

    @pytest.fixture(autouse=True)
    def _model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"library": "transformers", "model": str(folder), "definition": "cosine"}
        monkeypatch.setattr(type(self), "config", config)
