"""The judge keeps the contract, reads what a prompt asks for, and knows real drawings by their things."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from draft_emoji.configs import EmojiJudgeConfig, EmojiJudgeTop1Config
from draft_emoji.judge import EmojiJudge
from draft_emoji.thing_words import judged_things, named_thing

from draft_core import load_reward
from draft_core.errors import RewardError
from draft_core.testing import RewardContract


class TestEmojiJudge(RewardContract):
    kind = "emoji-judge"


class TestEmojiJudgeTop1(RewardContract):
    kind = "emoji-judge-top1"
    skip = {  # noqa: RUF012 declared ClassVar above
        "prompts_count_as_declared": "of the checks' images none shows a thing, and 0 stays 0 for any prompt"
    }


@pytest.fixture(scope="module")
def drawn(draw: Callable[[int, int], tuple[list[str], torch.Tensor]]) -> tuple[list[str], torch.Tensor]:
    """Sixteen held-out things and an image of each, (16, 3, 64, 64)."""
    return draw(16, 20)


def test_the_two_scores_are_one_distribution(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    judge: EmojiJudge = load_reward("emoji-judge")
    top1 = load_reward("emoji-judge-top1")
    assert top1(images, prompts).mean() > 0.8
    prompts, images = [prompts[0], prompts[0]], images[:2]  # the last is asked for another thing
    table = torch.stack([judge(images, [thing] * len(images)) for thing in judged_things()], dim=1)
    torch.testing.assert_close(table.exp().sum(1), torch.ones(len(images)), atol=1e-4, rtol=0)
    right = torch.tensor([named_thing(prompt, where="here") for prompt in prompts])
    torch.testing.assert_close(table[range(len(prompts)), right], judge(images, prompts))
    assert torch.equal(top1(images, prompts), (table.argmax(1) == right).float())


def test_another_prompt_is_seldom_believed(drawn: tuple[list[str], torch.Tensor]) -> None:
    prompts, images = drawn
    assert load_reward("emoji-judge-top1")(images, [*prompts[1:], prompts[0]]).mean() < 0.1


@pytest.mark.parametrize("prompt", ["a fox", "3d style, a fox", "A fox , animal", "noto style, a fox, face"])
def test_a_prompt_asks_for_its_thing(prompt: str) -> None:
    assert named_thing(prompt, where="here") == judged_things()["a fox"]


@pytest.mark.parametrize(
    ("prompt", "words"), [("a zebra crossing", "none of its 274 things"), ("a fox, an owl", "two of its 274 things")]
)
def test_a_prompt_of_no_thing_or_of_two_is_refused_before_the_judge_loads_and_after(prompt: str, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        load_reward("emoji-judge")(torch.rand(1, 3, 64, 64), [prompt])
    for config in (EmojiJudgeConfig(), EmojiJudgeTop1Config()):
        config.check_prompts(["a fox"])
        with pytest.raises(RewardError, match=words):
            config.check_prompts(["a fox", prompt])


def test_the_things_are_the_networks_answers() -> None:
    judge: EmojiJudge = load_reward("emoji-judge")
    assert {number: name for name, number in judged_things().items()} == judge.network.config.id2label
