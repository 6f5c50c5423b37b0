"""Detached targets: against replays that decode as the pipeline does, autograd by hand, and runs that go on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, Objective, Trainer
from draft_core.adapters.lora import adapters_off, lora_state, trainable
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import RecipeError, RewardError
from draft_core.learners import targets
from draft_core.learners.latents.decode import decode
from draft_core.learners.recorded_runs import apart
from draft_core.learners.targets import TargetLearner
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.chains import batch_of, scored
from tests.support.families import FAMILIES
from tests.support.tiny import Brightness, ClockConfig, Redness, RednessConfig, byte_tokenizer, tiny_pipe, with_lora

FLOWS = ("Stable Diffusion 3", "FLUX.1", "Wan 2.1")  # whose last step gives the posterior mean itself


def settings(**more: Any) -> Any:
    return SimpleNamespace(
        **{"size": 4, "refresh": 2, "prefix_steps": None, "last": 3, "radius": 0.1, "fits": 1, **more}
    )


def flow(name: str) -> DifferentiableSampler:
    family = next(family for family in FAMILIES if family.name.startswith(name))
    pipe = with_lora(family.pipe(), std=0.1)
    pipe.set_progress_bar_config(disable=True)
    return DifferentiableSampler(
        pipe,
        num_inference_steps=3,
        base_model=partial(adapters_off, pipe),
        **{**family.call(torch.float32), "negative_prompt": ""},
    )


def gradients(value: torch.Tensor, sampler: DifferentiableSampler) -> torch.Tensor:
    found = torch.autograd.grad(value, trainable(sampler.pipe), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])


score = scored(lambda x: x.square().mean(1))


@pytest.mark.parametrize("name", FLOWS)
def test_what_is_scored_at_the_last_level_is_the_pipelines_own_last_step(name: str) -> None:
    sampler = flow(name)
    noisy = TargetLearner(settings(last=1)).renoised(replace(batch_of(1, 0), prompts=["a cat"]), sampler)
    assert noisy.number == 2
    images = decode(noisy.sampler, noisy.rollout, noisy.step().posterior_mean()).images
    expected = noisy.sampler.replay(noisy.rollout, {2: noisy.latents}, decode=True)
    assert expected is not None
    torch.testing.assert_close(images, expected)
    found, wanted = (gradients(score(given, ["a cat"]).total.mean(), sampler) for given in (images, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def target_gradients(sampler: DifferentiableSampler) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the learner's first fit, and of the score's gradient at the posterior mean, normalised by hand."""
    learner = TargetLearner(settings(radius=0.3))
    batch = replace(batch_of(2, 0), prompts=["a cat", "a dog"])
    noisy = learner.renoised(batch, sampler)
    learner.renoised = lambda *given: noisy  # type: ignore[method-assign]
    (loss,) = learner.losses(batch, sampler, score)
    mean = noisy.step().posterior_mean()
    x0 = mean.detach().requires_grad_()
    (pull,) = torch.autograd.grad(score(decode(noisy.sampler, noisy.rollout, x0).images, batch.prompts).total.sum(), x0)
    pull = torch.stack([one / one.square().mean().sqrt() for one in pull])
    by_hand = -2 * 0.3 * (mean * pull).mean()
    return gradients(loss.value, sampler), gradients(by_hand, sampler)


def test_the_first_fit_to_a_target_follows_the_normalised_gradient_of_the_score() -> None:
    found, expected = target_gradients(flow("Stable Diffusion 3"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_a_target_that_is_not_normalised_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "clamp_min", lambda size, least: torch.ones_like(size))
    found, expected = target_gradients(flow("Stable Diffusion 3"))
    assert not torch.allclose(found, expected, rtol=1e-1)


# In a training


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(tokenizer: Any, learner: Any, **more: Any) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer))
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=4, guidance_scale=3.0, base_model=partial(adapters_off, pipe), **more
    )
    return Trainer(
        sampler,
        Objective({"redness": Redness(RednessConfig())}),
        learner,
        ["a", "b", "c"],
        TrainSettings(steps=4, batch_size=2, learning_rate=3e-2),
        regularizers=RegularizerSettings(kl=0.1),
        device="cpu",
    )


def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer, TargetLearner(settings(fits=2)))
    reports = list(whole)
    assert [report.reward_queries for report in reports] == [2] * 4
    assert {report.optimizer_steps for report in reports} == {2}
    assert reports[3].penalties["kl"] > 0
    first = trainer(tokenizer, TargetLearner(settings(fits=2)))
    first.train_step(), first.train_step(), first.train_step()
    assert len(first.learner.pool) == 4
    save_checkpoint(first, tmp_path / "000003")
    second = trainer(tokenizer, TargetLearner(settings(fits=2)))
    load_checkpoint(second, tmp_path / "000003")
    (report,) = list(second)
    assert report.loss == reports[3].loss
    mine, expected = lora_state(second.sampler.pipe), lora_state(whole.sampler.pipe)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)


def test_samples_are_drawn_when_the_pool_asks_for_them(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[int]()

    def record(sampler: DifferentiableSampler, *args: Any, **more: Any) -> Any:
        drawn.append(sampler.steps)
        return of_module(sampler, *args, **more)

    of_module = targets.record
    monkeypatch.setattr(targets, "record", record)
    one = trainer(tokenizer, TargetLearner(settings(size=3, refresh=3, prefix_steps=2)))
    for expected in ([2], [2], [2], [2, 2]):
        one.train_step()
        assert drawn == expected
    assert len(one.learner.pool) == 3


def test_what_does_not_fit_is_refused(tokenizer: Any) -> None:
    for more, message in (
        ({"last": 5}, "last = 5 is larger than the number of sampler steps, 4; use last <= 4"),
        ({"prefix_steps": 4}, "prefix_steps = 4 is larger than the number of sampler steps before the last, 3"),
    ):
        with pytest.raises(RecipeError, match=message):
            trainer(tokenizer, TargetLearner(settings(**more))).train_step()
    with pytest.raises(RecipeError, match=r"several of each prompt; set train.images_per_prompt instead"):
        trainer(tokenizer, TargetLearner(settings()), num_images_per_prompt=2).train_step()
    one = trainer(tokenizer, TargetLearner(settings()))
    one.scoring.objective = Objective({"brightness": Brightness(ClockConfig())})
    with pytest.raises(RewardError, match="its scores carry no gradient"):
        one.train_step()


def test_memory_is_that_of_the_larger_half(tokenizer: Any) -> None:
    """Of decoder and reward on one side, of the denoiser on the other, each measured alone."""
    one = trainer(tokenizer, TargetLearner(settings()))
    one.train_step()
    (batch,) = one.batches.draw(1)
    learner: Any = one.learner
    alone, _ = apart(one.sampler)  # what a base model takes is beside this
    noisy = learner.renoised(batch, alone)
    with torch.no_grad():
        mean = noisy.step().posterior_mean()

    def update() -> None:
        for loss in learner.losses(batch, alone, score):
            loss.value.backward()  # type: ignore[no-untyped-call]

    def fit() -> None:
        noisy.step().posterior_mean().square().mean().backward()  # type: ignore[no-untyped-call]

    of_reward = peak_memory(lambda: learner._target(noisy, mean, score), one.device)
    of_denoiser = peak_memory(fit, one.device)
    assert peak_memory(update, one.device) <= 1.1 * max(of_reward, of_denoiser)
