"""What reads motion: right about drawings that a program moves, silent about others, and a path that can be climbed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from draft_emoji import FOLDER, motion
from draft_emoji.motion import CHANGES, axis, motions, places, words_of
from draft_emoji.motion_unet import TextMotionUNet

from draft_core import load_reward
from draft_core.errors import RewardError
from draft_core.testing import RewardContract

PROMPTS = [f"a fox {words}" for words in CHANGES]
ALONE = [(words,) for words in CHANGES]
PAIRS = [pair for pair in itertools.combinations(CHANGES, 2) if axis(pair[0]) != axis(pair[1])]
FRAMES = 8


NONE = "of the checks' images and videos none shows a thing or a motion, and 0 stays 0 for any prompt"


class TestEmojiMotion(RewardContract):
    kind = "emoji-motion"
    skip = {"prompts_count_as_declared": NONE, "frames_count": NONE}  # noqa: RUF012 declared ClassVar above


class TestEmojiPath(RewardContract):
    kind = "emoji-path"


class TestEmojiMotionThing(RewardContract):
    kind = "emoji-motion-thing"
    skip = {"prompts_count_as_declared": NONE}  # noqa: RUF012 declared ClassVar above


def discs(scale: float = 1.0) -> torch.Tensor:
    """A yellow disc on white for each motion, moved by so much of what its motion changes: (6, 8, 3, 64, 64)."""
    return drawn([tuple(scale * part for part in change) for change in CHANGES.values()])


def both(first: str, second: str, scale: float = 0.8) -> torch.Tensor:
    """The disc with two motions at once, (1, 8, 3, 64, 64)."""
    return drawn([tuple(scale * (a + b) for a, b in zip(CHANGES[first], CHANGES[second], strict=True))])


def drawn(changes: Sequence[tuple[float, ...]]) -> torch.Tensor:
    """A disc for each change of its middle and the root of its area from the first frame to the last."""
    rows, columns = torch.meshgrid(*[(torch.arange(64) + 0.5) / 64] * 2, indexing="ij")
    videos = []
    for x, y, size in changes:
        frames = []
        for time in torch.linspace(-0.5, 0.5, FRAMES):
            radius = (0.4 + size * time) / torch.pi**0.5  # of the root of the area
            inside = (columns - 0.5 - x * time) ** 2 + (rows - 0.5 - y * time) ** 2 < radius**2
            paint = torch.tensor([0.98, 0.84, 0.2])[:, None, None]
            frames.append(torch.where(inside, paint, torch.ones(3, 64, 64)))
        videos.append(torch.stack(frames))
    return torch.stack(videos)


def test_every_motion_is_told_and_stillness_and_disorder_are_none() -> None:
    videos, order = discs(), torch.tensor([3, 0, 6, 1, 7, 4, 2, 5])
    assert motions(videos) == ALONE
    assert motions(videos.flip(1)) == [ALONE[n] for n in (1, 0, 3, 2, 5, 4)]
    for still in (videos[:, :1].expand_as(videos), videos[:, order], torch.ones_like(videos), discs(0.2)):
        assert set(motions(still)) == {()}
        assert set(motions(still, 2)) == {()}


def test_sides_that_are_swapped_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = motion.places
    monkeypatch.setattr(motion, "places", lambda videos: right(videos)[:, :, [1, 0, 2]])
    assert motions(discs())[:4] == [ALONE[n] for n in (2, 3, 0, 1)]


@pytest.mark.parametrize("bug", [False, True])
def test_two_motions_count_where_both_are_shown(monkeypatch: pytest.MonkeyPatch, bug: bool) -> None:
    """With a planted bug, judging by the first motion alone, videos of one motion would pass for two."""
    if bug:
        seen = motions
        monkeypatch.setattr(motion, "motions", lambda videos, count=1: [shown[:1] for shown in seen(videos, count)])
        monkeypatch.setattr(motion, "words_of", lambda prompt, where: (prompt, words_of(prompt, where)[1][:1]))
    reward, alone = load_reward("emoji-motion"), dict(zip(CHANGES, discs(), strict=True))
    assert len(PAIRS) == 12
    for first, second in PAIRS:
        prompts = [f"a fox {first} and {second}", f"3d style, a fox {second} and {first}"]
        right = reward(both(first, second).expand(2, -1, -1, -1, -1), prompts).tolist()
        assert bug or right == [1.0, 1.0]
        wrong = torch.cat([alone[first][None], alone[second][None], both(first, second).flip(1)])
        assert (reward(wrong, [prompts[0]] * 3).sum() > 0) == bug
    unequal = drawn([(0.0, -0.3, 0.05)])  # it grows by a sixth of what a motion changes: that is none
    assert reward(unequal, ["a fox moving up and growing"]).item() == bug


def test_two_motions_have_a_path_of_both() -> None:
    reward, video = load_reward("emoji-path"), both("moving up", "growing", 1.0)
    asked = ["moving up and growing", "moving up", "growing", "moving up and shrinking"]
    scores = reward(video.expand(4, -1, -1, -1, -1), [f"a fox {words}" for words in asked])
    assert scores[0] > -0.02
    assert (scores[1:] < -0.08).all()


def test_prompts_of_two_motions_are_read_in_one_order_and_opposites_are_refused() -> None:
    assert words_of("3d style, a fox growing and moving up", "") == ("3d style, a fox", ("moving up", "growing"))
    assert words_of("a cat and a fox moving up", "") == ("a cat and a fox", ("moving up",))
    for words in ("moving left and moving right", "growing and growing"):
        with pytest.raises(RewardError, match="two motions along one line"):
            words_of(f"a fox {words}", "")


def test_places_are_those_of_the_disc() -> None:
    found = places(discs())
    for (x, y, size), change in zip(CHANGES.values(), found[:, -1] - found[:, 0], strict=True):
        torch.testing.assert_close(change, torch.tensor([x, y, size]), atol=0.02, rtol=0)


def test_a_path_is_nearest_its_own_prompt_and_its_gradient_leads_there() -> None:
    reward, videos = load_reward("emoji-path"), discs()
    scores = torch.stack([reward(videos, [prompt] * len(videos)) for prompt in PROMPTS])
    assert torch.equal(scores.argmax(0), torch.arange(len(PROMPTS)))
    assert (scores.diagonal() > -0.01).all()
    less = discs(0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(less, PROMPTS).sum(), less)
    towards = reward((less + 0.05 * gradient / gradient.abs().amax((1, 2, 3, 4), keepdim=True)).clamp(0, 1), PROMPTS)
    assert (towards > reward(less, PROMPTS)).all()


def test_shares_count_the_prompts_motion_and_thing() -> None:
    reward = load_reward("emoji-motion")
    assert reward(discs(), PROMPTS).tolist() == [1.0] * 6
    assert reward(discs(), PROMPTS[::-1]).tolist() == [0.0] * 6
    assert load_reward("emoji-motion-thing")(discs()[:, 0], PROMPTS).sum() == 0, "a disc is no fox"
    with pytest.raises(RewardError, match="'a fox' ends in no motion"):
        reward(discs()[:1], ["a fox"])


@torch.no_grad()
def test_frames_of_a_new_adapter_are_images_of_the_frozen_denoiser() -> None:
    from emoji_training.video.denoiser import adapter

    images = UNet2DConditionModel.from_pretrained(FOLDER / "scenes-model" / "unet", torch_dtype=torch.float32)
    torch.manual_seed(0)
    made: MotionAdapter = adapter(images)
    videos = TextMotionUNet.from_unet2d(images, made)
    latents, text = torch.randn(1, 4, FRAMES, 16, 16), torch.randn(1, 24, 160).expand(FRAMES, -1, -1)
    one_by_one = torch.stack([images(latents[:, :, f], 500, text[:1]).sample for f in range(FRAMES)], dim=2)
    torch.testing.assert_close(videos(latents, 500, text).sample, one_by_one, atol=2e-5, rtol=0)
    next(p for name, p in videos.named_parameters() if "motion_modules" in name and "proj_out" in name).fill_(0.1)
    assert (videos(latents, 500, text).sample - one_by_one).abs().max() > 1e-3, "a planted weight is noticed"
