"""The contrast keeps the contract, is the softmax of the cosines, and blames an image that shows another thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from draft_emoji.contrast import EmojiContrast

from draft_core import load_reward
from draft_core.testing import RewardContract, compare_kind


class TestEmojiContrast(RewardContract):
    kind = "emoji-contrast"


@pytest.fixture(scope="module")
def contrast() -> EmojiContrast:
    return load_reward("emoji-contrast")


@pytest.fixture(scope="module")
def drawn(draw: Callable[[int, int], tuple[list[str], torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    """Eight held-out things and an image of each, (8, 3, 64, 64)."""
    return draw(8, 10)


@pytest.mark.parametrize("size", [(64, 64), (300, 401)], ids=str)  # how images are read is emoji-clip's, tested there
def test_scores_are_those_of_transformers_on_pillow(size: tuple[int, int]) -> None:
    comparison = compare_kind("emoji-contrast", {}, sizes=[size], count=3)
    assert comparison.holds, comparison


def test_it_is_the_softmax_of_the_cosines(contrast: EmojiContrast, drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    cosine = load_reward("emoji-clip")
    table = torch.stack([cosine(images[:1], [text]) for text in contrast.choices(prompts[0])])[:, 0]
    expected = (50 * table.double()).softmax(0)[0].log()
    torch.testing.assert_close(contrast(images[:1], prompts[:1])[0].double(), expected, atol=1e-4, rtol=0)


def test_own_images_are_believed_and_others_are_not(
    contrast: EmojiContrast, drawn: tuple[list[str], torch.Tensor]
) -> None:
    prompts, images = drawn
    own, others = contrast(images, prompts), contrast(images.roll(1, dims=0), prompts)
    assert (own > -4).all(), "chance is -5.3"
    assert (others < own - 2).all()


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("a zebra crossing", "a grinning face"),
        ("3d style, a zebra crossing", "3d style, a grinning face"),
        ("Flat style, A FOX , animal", None),
    ],
)
def test_the_others_have_the_style_of_the_prompt(contrast: EmojiContrast, prompt: str, first: str | None) -> None:
    own, *others = contrast.choices(prompt)
    assert own == prompt
    assert len(others) == len(contrast.things) - 1
    if first is None:
        assert all(text.startswith("Flat style, ") for text in others)
    else:
        assert len({text.rpartition(", ")[0] for text in others}) == 1


def test_a_thing_of_the_list_is_not_its_own_rival(contrast: EmojiContrast) -> None:
    thing = contrast.things[3]
    assert f"noto style, {thing}" not in contrast.choices(f"noto style, {thing}, tag")[1:]
    assert len(contrast.choices(thing)) == len(contrast.choices("no such thing"))
