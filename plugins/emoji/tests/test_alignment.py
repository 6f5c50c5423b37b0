"""The scores to train on keep the contract, and tell the model's own images apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from draft_core import load_reward
from draft_core.rewards.images import resize_like_pil
from draft_core.testing import SIZES, RewardContract, compare_kind


class TestEmojiClip(RewardContract):
    kind = "emoji-clip"


class TestEmojiPreference(RewardContract):
    kind = "emoji-preference"


@pytest.fixture(scope="module")
def drawn(draw: Callable[[int, int], tuple[list[str], torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    """Eight held-out things and an image of each, (8, 3, 64, 64)."""
    return draw(8, 10)


def test_every_image_scores_highest_for_its_own_prompt(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    reward = load_reward("emoji-clip")
    table = torch.stack([reward(images, [prompt] * len(images)) for prompt in prompts], dim=1)
    assert table.argmax(dim=1).tolist() == list(range(len(prompts)))


def test_control_words_score_by_the_sum_of_two_cosines(drawn: tuple[list[str], torch.Tensor]) -> None:
    """By CLIPModel's own text features, and in favour of the images that were drawn with the words for."""
    prompts, images = drawn
    plain = load_reward("emoji-clip")
    relative = load_reward("emoji-clip", positive="{prompt}", negative="3d style, {prompt}", k=0.5)
    texts = [f"3d style, {prompt}" for prompt in prompts]
    expected = 1.5 * plain(images, prompts) - plain(images, texts)
    torch.testing.assert_close(relative(images, prompts), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, 0.5 * plain(images, prompts), atol=0.01), "the words change nothing"


class TestEmojiClipWithControlWords(RewardContract):
    kind = "emoji-clip"
    config = {"positive": "3d style,", "negative": "flat style,", "k": 0.5}  # noqa: RUF012


def test_a_white_page_scores_below_the_image(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    reward = load_reward("emoji-clip")
    assert (reward(images, prompts) > reward(torch.ones_like(images), prompts) + 0.1).all()


def test_other_sizes_are_brought_to_its_own(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    reward = load_reward("emoji-clip")
    doubled = images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    torch.testing.assert_close(reward(doubled, prompts), reward(images, prompts), atol=0.05, rtol=0)


def test_what_spoils_an_image_lowers_its_preference(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    reward = load_reward("emoji-preference")
    scores = reward(images, prompts)
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    for worse in (gaussian_blur(images, [9, 9], [2.5]), 1 + 0.4 * (images - 1), grey, images.roll(1, dims=0)):
        assert (scores - reward(worse, prompts)).mean() > 1, "odds of e to 1, on average"


@pytest.mark.parametrize("kind", ["emoji-clip", "emoji-preference"])
@pytest.mark.parametrize("size", [(64, 64), *SIZES], ids=str)
def test_scores_are_those_of_transformers_on_pillow(size: tuple[int, int], kind: str) -> None:
    comparison = compare_kind(kind, {}, sizes=[size])
    assert comparison.holds, comparison


def test_another_filter_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_emoji.alignment.resize_like_pil",
        lambda images, height, width: resize_like_pil(images, height, width, filter="bilinear"),
    )
    assert not compare_kind("emoji-clip", {}, sizes=[(224, 224)]).holds
