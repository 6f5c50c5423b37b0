"""Video: every frame is an image to the rewards, from the objective to an update of the trainer."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from draft_core import DraftLV, Trainer
from draft_core.errors import RewardError
from draft_core.learners.direct import DirectLearner
from draft_core.rewards.objective import Objective
from draft_core.rewards.protocol import FrozenModule
from draft_core.training.settings import TrainSettings
from tests.support.drive import call_of, gradient, plain, sampler_of, seeded
from tests.support.families import FAMILIES
from tests.support.tiny import Redness, RednessConfig, with_lora

WAN = next(family for family in FAMILIES if family.name == "Wan 2.1, video")


class PromptLength(FrozenModule):
    """Brightness times the length of the prompt, so that a prompt beside the wrong frame is seen."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert images.ndim == 4
        return images.float().mean((1, 2, 3)) * torch.tensor([float(len(prompt)) for prompt in prompts])


def test_the_score_of_a_video_is_the_mean_over_its_frames() -> None:
    videos = torch.rand(2, 5, 3, 8, 8, generator=seeded())
    prompts = ["a", "a dog"]
    objective = Objective({"length": PromptLength(), "redness": Redness(RednessConfig())}, {"redness": 2.0})
    scores = objective(videos, prompts)
    one_by_one = torch.stack(
        [objective(video, [prompt] * 5).total.mean() for video, prompt in zip(videos, prompts, strict=True)]
    )
    torch.testing.assert_close(scores.total, one_by_one)
    assert scores.per_reward["length"].shape == (2,)


def test_every_frame_gets_a_gradient() -> None:
    videos = torch.rand(2, 3, 3, 8, 8, generator=seeded()).requires_grad_()
    (grad,) = torch.autograd.grad(Objective({"length": PromptLength()})(videos, ["a", "b"]).total.sum(), videos)
    assert (grad.flatten(2).norm(dim=2) > 0).all()


def test_a_reward_that_fails_on_frames_is_named() -> None:
    class Flat(FrozenModule):
        def forward(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return images.float().mean((1, 2, 3))[:1]

    with pytest.raises(RewardError, match=r"reward 'flat': it returned torch.float32 of shape \(1,\) for 6 images"):
        Objective({"flat": Flat()})(torch.rand(2, 3, 3, 8, 8), ["a", "b"])


def test_a_video_model_is_trained_with_an_image_reward() -> None:
    pipe = with_lora(WAN.pipe())
    trainer = Trainer(
        sampler_of(WAN, pipe),
        Objective({"redness": Redness(RednessConfig())}),
        DirectLearner(DraftLV(resamples=1)),
        ["a cat", "a red dog"],
        TrainSettings(steps=4, batch_size=1, learning_rate=3e-2, weight_decay=0.0),
        device="cpu",
    )

    def redness() -> torch.Tensor:
        with torch.no_grad():
            return trainer.objective(plain(pipe, call_of(WAN)), WAN.prompts).total.mean()

    before = redness()
    for report in trainer:
        assert report.grad_norm > 0
    assert redness() > before


def test_re_noised_videos_are_beside_the_prompts_of_their_samples() -> None:
    pipe = WAN.pipe()
    sampler = sampler_of(WAN, pipe)
    lv = DraftLV(resamples=2, batched=True)
    plan, renoising = lv.plan(sampler.steps, Random(0)), lv.renoising()
    rollout = sampler(WAN.prompts, plan=plan, renoising=renoising, generator=seeded())
    assert rollout.images.shape == (6, 5, 3, 16, 16)
    assert rollout.prompts == WAN.prompts * 3
    assert gradient(rollout.images, list(pipe.transformer.parameters())).norm() > 0
