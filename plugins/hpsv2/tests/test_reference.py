"""The same score as the published code: its transform on torchvision, and its use of open_clip."""

from __future__ import annotations

import open_clip
import pytest
import torch
from draft_reward_hpsv2 import draft_register_rewards

from draft_core.rewards.images import center_crop, resize_shortest_like_pil
from draft_core.testing import SIZES, compare_kind

(SPEC,) = draft_register_rewards()
# No Pillow resizes here, so that images may also be more than twice as tall as wide.
OWN_SIZES = (*SIZES, (513, 255), (640, 300))


@pytest.mark.parametrize("size", OWN_SIZES, ids=str)
def test_scores_are_those_of_the_published_code(size: tuple[int, int]) -> None:
    comparison = compare_kind("hpsv2", SPEC.small, sizes=[size])
    assert comparison.holds, comparison


def test_scores_without_antialiasing_are_those_of_older_torchvisions() -> None:
    comparison = compare_kind("hpsv2", {**SPEC.small, "antialias": False}, sizes=[(427, 640)])
    assert comparison.holds, comparison


def test_the_crop_of_other_scorers_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def crop(images: torch.Tensor, side: int, antialias: bool) -> torch.Tensor:
        return center_crop(resize_shortest_like_pil(images, side), side, rounding="half-even")

    monkeypatch.setattr("draft_reward_hpsv2.reward.letterbox", crop)
    assert not compare_kind("hpsv2", SPEC.small, sizes=[(300, 401)]).holds


def test_another_tokenizer_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves HTML entities as they are, say: that is what the hard prompts are for."""
    read = open_clip.tokenize
    monkeypatch.setattr(
        "draft_reward_hpsv2.reward.open_clip.tokenize", lambda texts: read([t.replace("&", "& ") for t in texts])
    )
    assert not compare_kind("hpsv2", SPEC.small, sizes=[(224, 224)]).holds
