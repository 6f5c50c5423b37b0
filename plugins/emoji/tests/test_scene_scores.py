"""The scores of scenes keep the contract, tell a scene from almost the same one, and know the model's own drawings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from draft_emoji.configs import SceneContrastConfig, SceneJudgeConfig, SceneJudgeRightConfig
from draft_emoji.contrast import SceneContrast
from draft_emoji.scene_judge import SceneJudge
from draft_emoji.scene_words import things

from draft_core import load_catalog, load_pipeline, load_reward
from draft_core.errors import RewardError
from draft_core.testing import SIZES, RewardContract, compare_kind

PROMPTS = [
    "a fox and a fire", "a carrot and a green rainbow", "a top hat and a pink penguin", "a crown and a purple heart",
    "a lemon and a yellow frog", "a cactus and a brown penguin",
]  # fmt: skip


class TestEmojiScene(RewardContract):
    kind = "emoji-scene"


class TestEmojiSceneContrast(RewardContract):
    kind = "emoji-scene-contrast"


class TestEmojiSceneJudge(RewardContract):
    kind = "emoji-scene-judge"


class TestEmojiSceneJudgeRight(RewardContract):
    kind = "emoji-scene-judge-right"
    skip = {  # noqa: RUF012 declared ClassVar above
        "prompts_count_as_declared": "of the checks' images none shows two things, and 0 stays 0 for any prompt"
    }


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """An image of each of PROMPTS, (6, 3, 64, 64)."""
    pipe: StableDiffusionPipeline = load_pipeline("emoji-scenes")
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(0) for _ in PROMPTS]
    call = {"num_inference_steps": 12, "guidance_scale": 4.0, "generator": generators, "output_type": "pt"}
    return pipe(PROMPTS, **call).images


@pytest.mark.parametrize("kind", ["emoji-scene", "emoji-scene-contrast"])
@pytest.mark.parametrize("size", [(64, 64), SIZES[0]], ids=str)
def test_scores_are_those_of_transformers_on_pillow(size: tuple[int, int], kind: str) -> None:
    comparison = compare_kind(kind, {}, sizes=[size])
    assert comparison.holds, comparison


@pytest.mark.parametrize("kind", ["emoji-scene", "emoji-scene-contrast", "emoji-scene-judge"])
def test_own_prompts_score_highest(kind: str, images: torch.Tensor) -> None:
    reward = load_reward(kind)
    table = torch.stack([reward(images, [prompt] * len(images)) for prompt in PROMPTS], dim=1)
    assert table.argmax(dim=1).tolist() == list(range(len(PROMPTS)))


def test_the_contrast_is_the_softmax_of_the_cosines(images: torch.Tensor) -> None:
    contrast, cosine = load_reward("emoji-scene-contrast"), load_reward("emoji-scene")
    table = torch.stack([cosine(images[:1], [text])[0] for text in contrast.choices(PROMPTS[0])]).double()
    expected = (50 * table / 100).softmax(0)[0].log()
    torch.testing.assert_close(contrast(images[:1], PROMPTS[:1])[0].double(), expected, atol=1e-4, rtol=0)


def test_near_misses_differ_in_one_thing_or_colour_or_by_a_swap() -> None:
    contrast: SceneContrast = load_reward("emoji-scene-contrast", near_misses=64)
    prompt = "3d style, a blue fox and an owl"
    own, *near = contrast.choices(prompt)
    assert own == prompt
    assert len(near) == 64
    assert near == contrast.choices(prompt)[1:]
    left, right = contrast.words.asked(prompt, where="")
    for text in near:
        assert text.startswith("3d style, ")
        pair = contrast.words.asked(text, where="")
        swapped = (pair[0].colour, pair[1].colour) == (right.colour, left.colour)
        assert sum(one != two for one, two in zip(pair, (left, right), strict=True)) == (2 if swapped else 1), text
        assert {one.thing for one in pair} - {left.thing, right.thing} <= set(contrast.things)


def test_no_near_miss_names_a_thing_that_only_held_out_prompts_ask_for() -> None:
    contrast: SceneContrast = load_reward("emoji-scene-contrast")
    lists = load_catalog().prompt_lists()
    held_out = {
        one.thing
        for line in lists["scenes-heldout"].read_text(encoding="utf-8").splitlines()
        for one in contrast.words.asked(line, where="")
    }
    assert not held_out & set(contrast.things)
    assert held_out | set(contrast.things) <= set(things())


def test_the_judge_sees_what_is_asked_for_and_nothing_else(images: torch.Tensor) -> None:
    judge, right = load_reward("emoji-scene-judge"), load_reward("emoji-scene-judge-right")
    assert right(images, PROMPTS).mean() >= 0.5
    assert right(images, [*PROMPTS[1:], PROMPTS[0]]).sum() == 0
    turned = judge(images.flip(-1), PROMPTS)
    torch.testing.assert_close(turned, judge(images, PROMPTS), atol=1.0, rtol=0)


def test_the_order_of_the_words_is_free(images: torch.Tensor) -> None:
    judge: SceneJudge = load_reward("emoji-scene-judge")
    turned = [" and ".join(reversed(prompt.split(" and "))) for prompt in PROMPTS]
    assert torch.equal(judge(images, turned), judge(images, PROMPTS))


@pytest.mark.parametrize("config", [SceneContrastConfig(), SceneJudgeConfig(), SceneJudgeRightConfig()])
@pytest.mark.parametrize("prompt", ["a fox", "a fox and a zebra crossing", "a fox and an owl and a key"])
def test_a_prompt_of_other_than_two_things_is_refused_before_anything_loads_and_after(config: Any, prompt: str) -> None:
    with pytest.raises(RewardError, match="does not ask for two of its 65 things"):
        load_reward(config.kind)(torch.rand(1, 3, 64, 64), [prompt])
    config.check_prompts(PROMPTS)
    with pytest.raises(RewardError, match="does not ask for two of its 65 things"):
        config.check_prompts([*PROMPTS, prompt])


def test_held_out_pairs_are_never_of_one_thing() -> None:
    words = load_reward("emoji-scene-contrast").words
    lines = load_catalog().prompt_lists()["scenes-heldout"].read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 40
    assert all(one.thing != two.thing for one, two in (words.asked(line, where="") for line in lines))
