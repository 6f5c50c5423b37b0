"""The same score as the published code: transformers' processor with Pillow, and its own features."""

from __future__ import annotations

from pathlib import Path

import pytest
from draft_reward_pickscore import PickScoreConfig, draft_register_rewards
from draft_reward_pickscore.reward import PickScoreReward

from draft_core.rewards.images import resize_and_crop_like_pil
from draft_core.testing import SIZES, compare_kind

(SPEC,) = draft_register_rewards()
RANDOM = PickScoreConfig(**SPEC.small)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_are_those_of_the_published_code(size: tuple[int, int]) -> None:
    comparison = compare_kind("pickscore", SPEC.small, sizes=[size])
    assert comparison.holds, comparison


def test_prompts_are_read_as_published(tokenizer_folder: Path) -> None:
    """With CLIP's real vocabulary."""
    fields = {**SPEC.small, "tokenizer": str(tokenizer_folder)}
    comparison = compare_kind("pickscore", fields, sizes=[(224, 224)])
    assert comparison.rows[-1].images == "hard prompts"
    assert comparison.worst < 1e-5


def test_the_crop_of_another_library_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_pickscore.reward.resize_and_crop_like_pil",
        lambda images, size, crop, rounding: resize_and_crop_like_pil(images, size, crop, rounding="half-even"),
    )
    assert not compare_kind("pickscore", SPEC.small, sizes=[(300, 401)]).holds


def test_the_vocabulary_is_clips(tokenizer_folder: Path) -> None:
    config = RANDOM.model_copy(update={"tokenizer": str(tokenizer_folder)})
    tokens = PickScoreReward(config).tokenizer(["a photo of a cat"])["input_ids"][0]
    assert tokens == [49406, 320, 1125, 539, 320, 2368, 49407]
