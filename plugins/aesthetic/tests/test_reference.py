"""The same score as the published pipeline: Pillow, open_clip's transform and tower, and the head as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_reward_aesthetic import AestheticConfig, draft_register_rewards
from draft_reward_aesthetic.reference import PublishedHead
from draft_reward_aesthetic.reward import rating_head

from draft_core.rewards.images import resize_and_crop_like_pil
from draft_core.testing import SIZES, compare_kind

(SPEC,) = draft_register_rewards()
RANDOM = AestheticConfig(**SPEC.small)

PUBLISHED_HEAD = Path(__file__).parents[4] / "shared" / "data" / "laion" / "sac+logos+ava1-l14-linearMSE.pth"
published = pytest.mark.skipif(not PUBLISHED_HEAD.exists(), reason=f"{PUBLISHED_HEAD.name} is not here")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scores_are_those_of_the_published_pipeline(size: tuple[int, int]) -> None:
    comparison = compare_kind("aesthetic", SPEC.small, sizes=[size])
    assert comparison.holds, comparison


@published
def test_the_published_head_scores_as_published() -> None:
    head = rating_head(RANDOM.model_copy(update={"head": str(PUBLISHED_HEAD)}))
    reference = PublishedHead().eval()
    reference.load_state_dict(torch.load(PUBLISHED_HEAD, map_location="cpu", weights_only=True))
    embeddings = torch.nn.functional.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        torch.testing.assert_close(head(embeddings), reference(embeddings), rtol=0, atol=2e-5)


@published
def test_the_published_head_is_one_linear_map() -> None:
    """|w| and b, measured once on the published file, tell it from any other."""
    head = rating_head(RANDOM.model_copy(update={"head": str(PUBLISHED_HEAD)})).double()
    with torch.no_grad():
        bias = head(torch.zeros(1, 768, dtype=torch.float64))
        weight = head(torch.eye(768, dtype=torch.float64)) - bias
    assert float(weight.norm()) == pytest.approx(17.996, abs=1e-3)
    assert float(bias) == pytest.approx(5.2366, abs=1e-4)


def test_the_crop_of_another_library_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_aesthetic.reward.resize_and_crop_like_pil",
        lambda images, size, crop, rounding: resize_and_crop_like_pil(images, size, crop, rounding="floor"),
    )
    assert not compare_kind("aesthetic", SPEC.small, sizes=[(300, 401)]).holds
