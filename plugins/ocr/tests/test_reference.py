"""The same score as Pillow's strip and CTC's recursion in float64."""

from __future__ import annotations

import pytest
from draft_reward_ocr import draft_register_rewards

from draft_core.testing import SIZES, compare_kind

SPECS = {spec.kind: spec for spec in draft_register_rewards()}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_are_those_of_pillow_and_plain_ctc(size: tuple[int, int]) -> None:
    comparison = compare_kind("ocr", SPECS["ocr"].small, sizes=[size], count=4)
    assert comparison.holds, comparison


@pytest.mark.parametrize("fields", [{"box": [0.1, 0.3, 0.9, 0.55]}, {"width": 100}, {"text": "00 aa"}], ids=str)
def test_with_every_field(fields: dict[str, object]) -> None:
    comparison = compare_kind("ocr", {**SPECS["ocr"].small, **fields}, sizes=[(120, 161)], count=4)
    assert comparison.holds, comparison


def test_each_prompt_has_its_own_text() -> None:
    comparison = compare_kind("ocr-per-prompt", SPECS["ocr-per-prompt"].small, sizes=[(120, 161)], count=4)
    assert comparison.holds, comparison
    assert comparison.rows[-1].images == "prompts"


def test_other_greys_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_reward_ocr.reward.GREY", (21845, 21845, 21846))
    assert not compare_kind("ocr", SPECS["ocr"].small, sizes=[(120, 161)], count=4).holds
