"""The same file size and the same distortion as Pillow's own encoder and decoder."""

from __future__ import annotations

import pytest
from draft_reward_jpeg import reward

from draft_core.testing import SIZES, compare_kind

KINDS = ("jpeg", "jpeg-distortion")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    comparison = compare_kind(kind, {}, sizes=[size])
    assert comparison.holds, comparison


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{"quality": 20}, {"quality": 95}, {"direction": "incompress"}])
def test_with_other_options(kind: str, fields: dict[str, object]) -> None:
    comparison = compare_kind(kind, fields, sizes=[(224, 224)])
    assert comparison.holds, comparison


def test_a_forgotten_header_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "HEADER_BYTES", 0)
    assert not compare_kind("jpeg", {}, sizes=[(224, 224)]).holds


def test_fine_chroma_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    roundtrip = reward.jpeg_roundtrip
    monkeypatch.setattr(reward, "jpeg_roundtrip", lambda images, quality, _: roundtrip(images, quality, "4:4:4"))
    assert not compare_kind("jpeg-distortion", {}, sizes=[(224, 224)]).holds
