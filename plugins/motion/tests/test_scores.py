"""The rewards of motion against closed forms, on clips of squares that move, grow and blink."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from draft_reward_motion import MotionConfig, MotionFollowedConfig

from draft_core import load_reward
from draft_core.errors import RewardError

FRAMES, HEIGHT, WIDTH = 8, 64, 96
PROMPTS = {
    "left": "a square moving left",
    "right": "a square moving right",
    "up": "a square moving up",
    "down": "a square moving down",
    "growing": "a square growing",
    "shrinking": "flat style, a square shrinking",
}
STEPS = {"left": (-4, 0), "right": (4, 0), "up": (0, -4), "down": (0, 4)}


def clip(boxes: Sequence[tuple[int, int, int]], level: float = 0.0, behind: float = 1.0) -> torch.Tensor:
    """(1, F, 3, 64, 96): a square around x, y of a side, all in pixels, of one level before another."""
    video = torch.full((1, len(boxes), 3, HEIGHT, WIDTH), behind)
    for frame, (x, y, side) in enumerate(boxes):
        video[0, frame, :, y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = level
    return video


def moving(name: str) -> torch.Tensor:
    dx, dy = STEPS[name]
    return clip([(48 + dx * (i - 4) + 2, 32 + dy * (i - 4) + 2, 16) for i in range(FRAMES)])


def sized(name: str) -> torch.Tensor:
    sides = range(12, 12 + 4 * FRAMES, 4)
    return clip([(48, 32, side) for side in (sides if name == "growing" else reversed(sides))])


def made(name: str) -> torch.Tensor:
    return moving(name) if name in STEPS else sized(name)


@pytest.mark.parametrize("name", PROMPTS)
def test_an_even_motion_scores_what_it_gains(name: str) -> None:
    # 28 pixels of 64 to one side; sides from 12 to 40. Weights are 1 / 1.04 of a black pixel, and sizes their root.
    weight = 1 / (1 + 0.2**2)
    expected = 100 * 28 / HEIGHT * (1 if name in STEPS else weight**0.5)
    score = load_reward("motion")(made(name), [PROMPTS[name]])
    torch.testing.assert_close(score, torch.tensor([expected]), rtol=1e-3, atol=0)


def test_other_motions_than_the_one_asked_for_cost_what_they_gain() -> None:
    reward = load_reward("motion")
    opposite = reward(moving("left"), [PROMPTS["right"]])
    across = reward(moving("left"), [PROMPTS["up"]])
    moved = reward(moving("left"), [PROMPTS["growing"]])
    for score in (opposite, across, moved):
        torch.testing.assert_close(score, torch.tensor([-100 * 28 / HEIGHT]), rtol=1e-3, atol=0)


def test_a_jump_scores_less_than_an_even_motion_of_the_same_line() -> None:
    """numpy's least squares says what the line gains, and how far the frames are from it."""
    x = [20, 20, 20, 20, 60, 60, 60, 60]
    slope, start = np.polyfit(range(FRAMES), x, 1)
    off = np.abs(np.polyval([slope, start], range(FRAMES)) - x).mean()
    score = load_reward("motion")(clip([(at, 32, 16) for at in x]), [PROMPTS["right"]])
    expected = 100 * (slope * (FRAMES - 1) - off) / HEIGHT
    torch.testing.assert_close(score, torch.tensor([expected], dtype=torch.float32), rtol=1e-3, atol=0)


def test_empty_and_still_videos_score_nothing() -> None:
    reward, followed = load_reward("motion"), load_reward("motion-followed")
    for video in (clip([(48, 32, 0)] * FRAMES), clip([(48, 32, 16)] * FRAMES)):
        for prompt in PROMPTS.values():
            torch.testing.assert_close(reward(video, [prompt]), torch.zeros(1), atol=1e-3, rtol=0)
            assert followed(video, [prompt]).item() == 0


@pytest.mark.parametrize("asked", PROMPTS)
@pytest.mark.parametrize("shown", PROMPTS)
def test_a_motion_is_followed_where_it_is_the_one_asked_for(shown: str, asked: str) -> None:
    assert load_reward("motion-followed")(made(shown), [PROMPTS[asked]]).item() == (shown == asked)


def test_a_movement_is_followed_from_the_least_on() -> None:
    followed = load_reward("motion-followed", least=10)
    for pixels, expected in ((4, 0.0), (8, 1.0)):  # of 64: 6 and 12 percent
        video = clip([(32, 32, 16), (32 + pixels, 32, 16)])
        assert followed(video, [PROMPTS["right"]]).item() == expected
        noisy = video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        assert followed(noisy, [PROMPTS["right"]]).item() == expected
    assert followed(clip([(32, 32, 16), (40, 40, 16)]), [PROMPTS["right"]]).item() == 0, "half of it is downwards"
    assert followed(clip([(32, 32, 16), (40, 32, 32)]), [PROMPTS["right"]]).item() == 0, "it grows as well"


def test_a_direction_and_a_background_that_are_set_are_used() -> None:
    video = 1 - moving("left")
    for kind, expected in (("motion", 100 * 28 / HEIGHT), ("motion-followed", 1.0)):
        score = load_reward(kind, direction="left", background="#000000")(video, ["anything"])
        torch.testing.assert_close(score, torch.tensor([expected]), rtol=1e-3, atol=0)


def test_flicker_is_the_second_difference() -> None:
    flicker = load_reward("flicker")
    blinking = torch.zeros(1, FRAMES, 3, 8, 8)
    blinking[:, ::2] = 1
    fading = torch.linspace(0, 1, FRAMES).view(1, FRAMES, 1, 1, 1).expand(1, FRAMES, 3, 8, 8)
    pulse = torch.zeros(1, 5, 3, 8, 8)
    pulse[:, 2, :, :4] = 1  # half of the frame: 1, 2, 1 over three inner frames
    expected = {-200.0: blinking, 0.0: fading, -100 * (1 + 2 + 1) / 3 / 2: pulse}
    for score, video in expected.items():
        torch.testing.assert_close(flicker(video, [""]), torch.tensor([score]), atol=1e-4, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    video = (0.5 + 0.4 * torch.rand(1, 4, 3, 6, 7, generator=torch.Generator().manual_seed(1))).double()
    from draft_reward_motion.reward import line, track

    def gained(x: torch.Tensor) -> torch.Tensor:
        return line(track(x, "#ffffff", 0.2))[0]

    assert torch.autograd.gradcheck(gained, video.requires_grad_())


@pytest.mark.parametrize(
    ("prompts", "said"),
    [(["a fox"], "names no motion"), (["a fox moving left, growing"], "names several motions")],
)
def test_prompts_that_cannot_be_read_are_refused(prompts: list[str], said: str) -> None:
    for kind in ("motion", "motion-followed"):
        with pytest.raises(RewardError, match=said):
            load_reward(kind)(moving("left"), prompts)
    for config in (MotionConfig, MotionFollowedConfig):
        config().check_prompts(list(PROMPTS.values()))
        config(direction="left").check_prompts(prompts)
        with pytest.raises(RewardError, match=said):
            config().check_prompts([*PROMPTS.values(), *prompts])


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(RewardError, match="have 2 frames, and it needs 3"):
        load_reward("flicker")(torch.rand(1, 2, 3, 8, 8), [""])
    with pytest.raises(RewardError, match=r"torch.float32 of shape \(1, 3, 8, 8\)"):
        load_reward("motion")(torch.rand(1, 3, 8, 8), ["a fox growing"])
