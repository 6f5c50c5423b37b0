"""The chosen frames of a video: decoded alone, and the same as in the whole video, images and gradients."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from draft_core import DraftK, Trainer
from draft_core.errors import DraftError, RecipeError, RewardError, SamplerError
from draft_core.evaluation.evaluate import evaluate
from draft_core.evaluation.image_measures import motion
from draft_core.frames import FrameChoice
from draft_core.learners.direct import DirectLearner
from draft_core.rewards import FrozenModule
from draft_core.rewards.objective import Objective
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import FrameSettings, TrainSettings
from tests.support.drive import gradient, sampler_of, seeded
from tests.support.families import FAMILIES
from tests.support.image_classes import class_of, sd
from tests.support.tiny import Redness, RednessConfig, with_lora
from tests.support.video_classes import GUIDED, SIZE, animate

WAN = next(family for family in FAMILIES if family.name == "Wan 2.1, video")
ANIMATE = class_of("AnimateDiffPipeline", animate, num_frames=5, decode_chunk_size=3, **GUIDED, **SIZE)
IMAGES = class_of("StableDiffusionPipeline", sd, **GUIDED, **SIZE)
PROMPTS = ["a cat", "a dog"]


class Movement(FrozenModule):
    """The mean difference of neighbouring frames."""

    takes = "video"

    def forward(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert videos.ndim == 5
        return videos.float().diff(dim=1).square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("count", "total", "frames"),
    [(1, 5, (2,)), (2, 5, (0, 4)), (3, 5, (0, 2, 4)), (4, 8, (0, 2, 5, 7)), (5, 5, (0, 1, 2, 3, 4))],
)
def test_even_frames_run_from_the_first_to_the_last(count: int, total: int, frames: tuple[int, ...]) -> None:
    assert FrameChoice(count).of(total) == frames


def test_random_frames_are_those_of_their_key() -> None:
    drawn = [FrameChoice(3, "random", f"0 {update}").of(8) for update in range(200)]
    assert drawn == [FrameChoice(3, "random", f"0 {update}").of(8) for update in range(200)]
    assert all(len(set(frames)) == 3 and frames == tuple(sorted(frames)) for frames in drawn)
    seen = [sum(frame in frames for frames in drawn) for frame in range(8)]
    assert min(seen) > 40, "each frame in 75 of 200 draws, with a standard deviation of 7"


def test_more_frames_than_there_are_is_refused() -> None:
    with pytest.raises(SamplerError, match="6 frames are chosen of videos that have 5"):
        FrameChoice(6).of(5)


@pytest.mark.parametrize("family", [ANIMATE, WAN], ids=["frame by frame", "decoded whole"])
def test_chosen_frames_are_those_of_the_whole_video(family: Any) -> None:
    """Images and gradients, against the whole video cut after its decoding."""
    pipe = family.pipe()
    sampler = sampler_of(family, pipe)
    plan = DraftK(k=1).plan(sampler.steps, Random(0))
    prompts, parameters = family.prompts, list((getattr(pipe, "unet", None) or pipe.transformer).parameters())
    whole = sampler(prompts, plan=plan, generator=seeded()).images
    assert sampler.traits.frames == whole.shape[1] == 5
    chosen = FrameChoice(3, "random", "key")
    expected = whole[:, list(chosen.of(5))]
    of_expected = gradient(expected, parameters)
    sampler.frames = chosen
    found = sampler(prompts, plan=plan, generator=seeded()).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient(found, parameters), of_expected, rtol=1e-4, atol=1e-7)


def test_only_the_chosen_frames_meet_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ANIMATE.pipe()
    sampler = sampler_of(ANIMATE, pipe)
    seen: list[int] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(
        pipe.vae, "decode", lambda latents, *a, **k: seen.append(len(latents)) or decode(latents, *a, **k)
    )
    sampler.frames = FrameChoice(2)
    assert sampler.steps == 2
    seen.clear()  # the dry run's
    images = sampler(PROMPTS, plan=DraftK(k=1).plan(sampler.steps, Random(0)), generator=seeded()).images
    assert images.shape[:2] == (2, 2)
    # Ten frames in chunks of three; frames 0 and 4 of each video are 0, 4, 5 and 9. The chunk without one decodes one.
    assert seen == [1, 2, 1, 1]


def trainer(tmp_seed: int = 0, frames: FrameSettings | None = None, **rewards: Any) -> Trainer:
    pipe = with_lora(ANIMATE.pipe())
    return Trainer(
        sampler_of(ANIMATE, pipe),
        Objective(rewards or {"movement": Movement(), "redness": Redness(RednessConfig())}),
        DirectLearner(DraftK(k=1)),
        PROMPTS,
        TrainSettings(steps=4, batch_size=2, learning_rate=1e-3, seed=tmp_seed, frames=frames),
        device="cpu",
    )


def test_a_resumed_run_of_random_frames_is_the_uninterrupted_one(tmp_path: Path) -> None:
    frames = FrameSettings(count=2, choice="random")
    whole = trainer(frames=frames)
    drawn = [(next(iter(whole)).reward, whole.sampler.frames.of(5)) for _ in range(4)]
    assert len({chosen for _, chosen in drawn}) > 1
    first = trainer(frames=frames)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(frames=frames)
    load_checkpoint(second, tmp_path / "000002")
    assert [(second.train_step().reward, second.sampler.frames.of(5)) for _ in range(2)] == drawn[2:]
    for one, other in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(one, other)


def test_rewards_of_videos_see_the_chosen_frames_and_evaluations_all() -> None:
    shapes: list[torch.Size] = []

    class Seen(Movement):
        def forward(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            shapes.append(videos.shape[:2])
            return super().forward(videos, prompts)

    one = trainer(frames=FrameSettings(count=3), seen=Seen())
    assert one.train_step().grad_norm > 0
    evaluate(one.sampler, one.objective, ["a cat"], [0])
    assert shapes == [(2, 3), (1, 5)]


def test_an_image_model_is_no_match_for_rewards_of_videos_and_chosen_frames() -> None:
    def of_images(objective: Objective, **settings: Any) -> Trainer:
        sampler = sampler_of(IMAGES, with_lora(IMAGES.pipe()))
        return Trainer(sampler, objective, DirectLearner(DraftK(k=1)), PROMPTS, TrainSettings(**settings), device="cpu")

    with pytest.raises(
        RewardError, match="reward 'movement': it scores videos, and StableDiffusionPipeline makes images"
    ):
        of_images(Objective({"movement": Movement()}))
    with pytest.raises(RecipeError, match=r"train.frames: StableDiffusionPipeline makes images, which have none"):
        of_images(Objective({"redness": Redness(RednessConfig())}), frames=FrameSettings())
    with pytest.raises(RecipeError, match=r"train.frames.count: it asks for 6 frames, and the videos have 5"):
        trainer(frames=FrameSettings(count=6))
    with pytest.raises(DraftError, match="FrameSettings: count"):
        FrameSettings(count=0)


def test_a_reward_of_videos_gets_all_frames_at_once_and_refuses_images() -> None:
    videos = torch.rand(2, 5, 3, 8, 8, generator=seeded())
    objective = Objective({"movement": Movement(), "redness": Redness(RednessConfig())})
    scores = objective(videos, PROMPTS).per_reward
    torch.testing.assert_close(scores["movement"], Movement()(videos, PROMPTS))
    torch.testing.assert_close(
        scores["redness"],
        torch.stack([objective.rewards["redness"](video, PROMPTS * 3)[:5].mean() for video in videos]),
    )
    with pytest.raises(RewardError, match="reward 'movement': it scores videos, and these are images"):
        objective(videos[:, 0], PROMPTS)


def test_evaluations_measure_movement_and_flicker_of_videos_alone() -> None:
    pipe = ANIMATE.pipe()
    seen = evaluate(sampler_of(ANIMATE, pipe), Objective({}), ["a cat"], [1], keep=lambda videos: videos)
    assert seen.images.shape[:3] == (1, 5, 3)
    beside = evaluate(sampler_of(ANIMATE, pipe), Objective({}), ["a cat"], [1], watch=lambda videos: videos)
    assert beside.watched is not None
    assert torch.equal(beside.watched, seen.images)
    assert torch.equal(beside.images, seen.images[:, 2])
    frames = seen.images[0].double().numpy()
    movement = np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(frames)])
    flicker = np.mean([np.abs(frames[i - 1] - 2 * frames[i] + frames[i + 1]).mean() for i in (1, 2, 3)])
    assert seen.motion["movement"].item() == pytest.approx(movement, rel=1e-5)
    assert seen.motion["flicker"].item() == pytest.approx(flicker, rel=1e-5)
    assert not evaluate(sampler_of(IMAGES, IMAGES.pipe()), Objective({}), ["a cat"], [1]).motion
    assert motion(torch.zeros(2, 1, 3, 8, 8)) == {}
    assert set(motion(torch.zeros(2, 2, 3, 8, 8))) == {"movement"}


def test_an_evaluation_refuses_rewards_of_videos_for_images_before_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(IMAGES, IMAGES.pipe())
    assert sampler.traits.frames is None
    monkeypatch.setattr(type(sampler), "__call__", lambda *a, **k: pytest.fail("it drew"))
    with pytest.raises(RewardError, match="it scores videos, and StableDiffusionPipeline makes images"):
        evaluate(sampler, Objective({"movement": Movement()}), ["a cat"], [0])


def test_settings_differ_by_their_frames() -> None:
    assert replace(TrainSettings(), frames=FrameSettings(count=2)) != TrainSettings()
