"""emoji-vlm as the model of the reward vlm: found by its alias, equal to its own generate, right about plain cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_emoji.motion_words import CHANGES, axis, words_of

from draft_core import load_catalog, load_pipeline, load_reward
from draft_core.errors import DraftError
from draft_core.rewards.images import to_pil

if "vlm" not in load_catalog().rewards:
    pytest.skip("draft-reward-vlm is not installed", allow_module_level=True)

PAINTS = {"red": (220, 40, 40), "green": (60, 170, 70), "blue": (50, 110, 225)}


QUESTIONS = Path(__file__).resolve().parents[3] / "recipes" / "prompts"


def asked(*questions: str, **more: Any) -> Any:
    told = [{"ask": question, "score": "probability", "name": question} for question in questions]
    return load_reward("vlm", **{"model": "emoji-vlm", "dtype": "float32", "questions": told, **more})


def discs(*places: tuple[float, float, float]) -> torch.Tensor:
    """An image (3, 64, 64) for each paint with discs of it, each (x, y, radius), on white: (paints, 3, 64, 64)."""
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    inside = torch.stack([(x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in places]).any(0)
    paints = torch.tensor(list(PAINTS.values()))[:, :, None, None] / 255
    return torch.where(inside, paints, torch.ones(3, 64, 64))


def test_the_colour_of_a_disc_is_told_and_has_a_gradient() -> None:
    images = discs((32, 32, 26)).requires_grad_()
    critic = asked(*(f"Is it {colour}?" for colour in PAINTS))
    scores, parts = critic.score_with_components(images, ["a fox"] * 3)
    table = torch.stack(list(parts.values()))
    assert (table.diagonal() > 0.5).all(), table
    assert (table - torch.eye(3) < 0.5).all(), table
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient != 0).float().mean() > 0.99


def moved() -> torch.Tensor:
    """A disc of blue for each motion of the videos, (6, 8, 3, 64, 64)."""
    videos = []
    for x, y, size in CHANGES.values():
        times = torch.linspace(-0.5, 0.5, 8).tolist()
        frames = [(32 + 64 * x * t, 32 + 64 * y * t, 64 * (0.4 + size * t) / torch.pi**0.5) for t in times]
        videos.append(torch.stack([discs(frame)[2] for frame in frames]))
    return torch.stack(videos)


def test_the_motion_of_a_disc_is_told_from_three_frames_which_have_a_gradient() -> None:
    """But left from right, which it often mistakes."""
    critic = asked(*(f"Is it {words}?" for words in CHANGES), model="emoji-vlm-motion", frames="images", frame_count=3)
    videos = moved().requires_grad_()
    scores, parts = critic.score_with_components(videos, ["a fox"] * 6)
    table = torch.stack(list(parts.values()))
    assert (table.diagonal()[2:] > 0.5).all(), table
    assert ((table - torch.eye(6)).abs()[2:] < 0.5).float().mean() > 0.9, table
    (gradient,) = torch.autograd.grad(scores.sum(), videos)
    assert (gradient != 0).flatten(2).any(2).tolist() == [[place in (0, 4, 7) for place in range(8)]] * 6
    backwards = torch.stack(list(critic.score_with_components(videos.detach().flip(1), ["a fox"] * 6)[1].values()))
    assert (backwards.diagonal()[2:] < 0.5).all(), "in reverse each shows another motion"


def test_the_recipe_asks_every_prompt_what_is_true_of_it() -> None:
    lists = load_catalog().prompt_lists()
    prompts = [
        prompt
        for name in ("emoji-motion-pairs", "emoji-motion-pairs-held-out")
        for prompt in lists[name].read_text(encoding="utf-8").splitlines()
    ]
    asked_of = json.loads((QUESTIONS / "motion-questions.json").read_text("utf-8"))
    assert list(asked_of) == prompts
    for prompt in prompts:
        motions = words_of(prompt, "")[1]
        said = {question["ask"]: question["answer"] for question in map(whole, asked_of[prompt])}
        both = [words for words in CHANGES if any(axis(words) == axis(motion) for motion in motions)]
        assert said == {f"Is it {words}?": "Yes" if words in motions else "No" for words in both}


def whole(question: dict[str, str]) -> dict[str, str]:
    """A question of a file with its answer, Yes if none is given; both count by their log-probability."""
    told = {"answer": "Yes", **question}
    assert told["answer"] in {"Yes", "No"}
    assert told.keys() == {"ask", "answer", "score"}
    assert told["score"] == "log-probability"
    return told


def test_two_motions_at_once_are_both_told() -> None:
    critic = asked(*(f"Is it {words}?" for words in CHANGES), model="emoji-vlm-motion", frames="images", frame_count=3)
    for pair in (("moving up", "growing"), ("moving down", "growing"), ("moving up", "shrinking")):
        x, y, size = (0.7 * (a + b) for a, b in zip(*(CHANGES[words] for words in pair), strict=True))
        times = torch.linspace(-0.5, 0.5, 3).tolist()
        disc = [discs((32 + 64 * x * t, 32 + 64 * y * t, 64 * (0.4 + size * t) / torch.pi**0.5))[2] for t in times]
        parts = critic.score_with_components(torch.stack(disc)[None], ["a fox"])[1]
        said = {words for words, score in zip(CHANGES, parts.values(), strict=True) if score > 0.5}
        assert said == set(pair)


def test_its_probability_is_that_of_its_own_generate() -> None:
    from draft_reward_vlm.reference import first_token

    critic = asked("Is it red?").critic
    image = discs((32, 32, 26))[0]
    said = critic.text_of("Is it red?", (3, 64, 64))
    question = critic.ask("Is it red?", (" yes", "no"), (3, 64, 64))
    logs = critic([image], [question], [0])[0][:, 0]
    tokens = [answer[0] for answer in question.answers]
    assert critic.processor.tokenizer.convert_ids_to_tokens(tokens) == ["yes", "no"]
    torch.testing.assert_close(logs, first_token(critic.model, to_pil(image), said)[tokens], rtol=0, atol=1e-4)
    assert logs.exp().sum() > 0.99


def test_what_it_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(DraftError, match="does not know 'gazebo' in 'Is it a gazebo\\?'"):
        asked("Is it a gazebo?")(discs((32, 32, 26)), ["a fox"] * 3)
    with pytest.raises(DraftError, match="unknown model 'emoji-vml'; did you mean 'emoji-vlm'"):
        load_reward("vlm", model="emoji-vml")
    with pytest.raises(DraftError, match="unknown model 'emoji-vlm'"):
        load_pipeline("emoji-vlm")
