"""Policy gradient: against the exact gradient of linear-Gaussian chains, and losses and advantages by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from draft_core import DifferentiableSampler, Objective, Trainer, load_pipeline
from draft_core.adapters.lora import adapters_off, lora_state
from draft_core.errors import DraftError, RecipeError, SamplerError
from draft_core.learners.advantages import ByGroup, ByPrompt
from draft_core.learners.policy_gradient import PolicyGradient, clipped_loss, divergence, grpo
from draft_core.learners.recorded_runs import again, log_probability_then, record
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.chains import Affine, batch_of, ddim, points, scored
from tests.support.families import FAMILIES
from tests.support.tiny import Brightness, ClockConfig, byte_tokenizer, make_scheduler, tiny_pipe, with_lora

SETTINGS: dict[str, Any] = {
    "clip_range": 1e-4,
    "advantage_clip": 5.0,
    "inner_epochs": 1,
    "minibatches": 1,
    "steps": None,
    "history": 8,
    "least": 4,
}


def settings(**more: Any) -> Any:
    return SimpleNamespace(**{**SETTINGS, **more})


class Plain:
    """Rewards as they are, whose policy gradient is that of the expected reward itself."""

    def of(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        return list(rewards)

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def expected_reward(a: torch.Tensor, b: torch.Tensor, alphas: Sequence[float]) -> torch.Tensor:
    """E[-(x - 1)^2] of the last latents, by mean and variance of a chain of DDIM steps with eta 1.

    The prediction is x0 = a x + b; the steps are those of Song et al. 2021, equations 12 and 16; `alphas` has alpha^2
    at every level.
    """
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for here, there in pairwise(alphas):
        noise = (1 - there) / (1 - here) * (1 - here / there)
        of_eps = math.sqrt((1 - there - noise) / (1 - here))
        of_x0 = math.sqrt(there) - of_eps * math.sqrt(here)
        factor = of_eps + of_x0 * a
        mean, variance = factor * mean + of_x0 * b, factor**2 * variance + noise
    return -(variance + (mean - 1) ** 2)


@pytest.mark.parametrize("steps", [1, 2])
def test_its_mean_is_the_exact_gradient_of_the_expected_reward(steps: int) -> None:
    denoiser = Affine(0.4, 0.1)
    scheduler = ddim(num_train_timesteps=4, trained_betas=[0.3, 0.4, 0.5, 0.6], prediction_type="sample")
    sampler = points(denoiser, 1, steps, scheduler=scheduler)
    scheduler.set_timesteps(steps)
    levels = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    value = expected_reward(denoiser.a, denoiser.b, [*levels, float(scheduler.final_alpha_cumprod)])
    exact = torch.stack(torch.autograd.grad(value, [denoiser.a, denoiser.b]))

    learner = PolicyGradient(settings(advantage_clip=math.inf), Plain())
    found = []
    for update in range(40):
        total = torch.zeros(2, dtype=torch.float64)
        batch = batch_of(256, update)
        for loss in learner.losses(batch, sampler, scored(lambda x: -(x[:, 0] - 1).square())):
            # the shares of the steps sum to 1, where the score's gradient is their sum
            part = torch.autograd.grad(-loss.value * loss.share * steps, [denoiser.a, denoiser.b])
            total += torch.stack(part)
        found.append(total)
    means, errors = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(len(found))
    assert bool((exact.abs() > 6 * errors).all()), "too noisy to tell"
    assert bool(((means - exact).abs() < 3 * errors).all())


def test_the_clipped_loss_is_the_one_by_hand() -> None:
    ratio = torch.tensor([0.5, 0.95, 1.0, 1.3, 0.5, 1.3], requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, 2.0, 2.0, -1.0, -1.0])
    loss, outside = clipped_loss(ratio, advantages, 0.1)
    # max(-A r, -A clip(r)): gains end above the range, losses below it
    assert loss.item() == pytest.approx((-1.0 - 1.9 - 2.0 - 2.2 + 0.9 + 1.3) / 6)
    assert outside == pytest.approx(4 / 6)
    (gradient,) = torch.autograd.grad(loss, ratio)
    assert gradient.tolist() == pytest.approx([-2 / 6, -2 / 6, -2 / 6, 0.0, 0.0, 1 / 6])


def test_divergence_is_the_kl_of_normal_distributions() -> None:
    denoiser = Affine(0.4, 0.1)
    sampler = points(denoiser, 1, 2)
    (rollout,) = record(sampler, batch_of(3, 0))

    class Shifted:
        def __enter__(self) -> None:
            denoiser.b.data += 0.7

        def __exit__(self, *_: object) -> None:
            denoiser.b.data -= 0.7

    now = again(sampler, rollout, 0).gaussian()
    with Shifted():
        base = again(sampler, rollout, 0).gaussian()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(now.mean, now.std), normal(base.mean, base.std)).mean()
    found = divergence(sampler, Shifted, rollout, 0, now)
    torch.testing.assert_close(found, expected)
    assert found > 1e-3
    assert found.requires_grad


# Advantages


def test_advantages_by_prompt_are_of_its_last_rewards_once_there_are_enough() -> None:
    rule = ByPrompt(history=5, least=4)
    first = rule.of(["a", "a", "b", "a"], [1.0, 2.0, 10.0, 3.0])
    batch = np.array([1.0, 2.0, 10.0, 3.0])
    assert first == pytest.approx(list((batch - batch.mean()) / batch.std()))
    second = rule.of(["a", "b", "a", "a"], [4.0, 12.0, 7.0, math.nan])
    known = np.array([1.0, 2.0, 3.0, 4.0, 7.0])
    finite = np.array([4.0, 12.0, 7.0])
    assert second[:3] == pytest.approx(
        [
            (4 - known.mean()) / known.std(),
            (12 - finite.mean()) / finite.std(),
            (7 - known.mean()) / known.std(),
        ]
    )
    assert second[3] == 0.0
    rule.of(["a"], [9.0])
    assert rule.state_dict() == {"rewards": {"a": [2.0, 3.0, 4.0, 7.0, 9.0], "b": [10.0, 12.0]}}
    other = ByPrompt(history=5, least=4)
    other.load_state_dict(rule.state_dict())
    assert other.of(["a"], [5.0]) == rule.of(["a"], [5.0])


def test_advantages_by_group_are_of_the_images_of_one_prompt() -> None:
    found = ByGroup().of(["a", "a", "b", "b", "b"], [1.0, 3.0, 5.0, 5.0, 5.0])
    assert found == pytest.approx([-1.0, 1.0, 0.0, 0.0, 0.0])
    with pytest.raises(RecipeError, match=r"train.images_per_prompt: no prompt of a pass has two images.*2 or more"):
        ByGroup().of(["a", "b"], [1.0, 2.0])


# Ratios, on several families


@pytest.mark.parametrize("name", ["emoji", "Stable Diffusion 1", "Stable Diffusion 3", "FLUX.1"])
def test_the_first_ratio_is_one_in_every_bit(name: str) -> None:
    if name == "emoji":
        pipe, call = load_pipeline("emoji"), {"guidance_scale": 4.0}
    else:
        family = next(one for one in FAMILIES if one.name.startswith(name))
        pipe, call = family.pipe(), family.call(torch.float32)
    sampler = DifferentiableSampler(pipe, num_inference_steps=4, noise=0.7, **call)
    (rollout,) = record(sampler, replace(batch_of(2, 0), prompts=["a cat", "a red dog"]))
    noisy = sorted(sampler.noisy_steps)
    assert len(noisy) >= sampler.steps - 1
    for number in noisy:
        now, after = again(sampler, rollout, number).gaussian(), rollout.trajectory[number].after
        assert now.mean.requires_grad
        ratio = (now.log_probability(after) - log_probability_then(rollout, number)).exp()
        assert torch.equal(ratio, torch.ones_like(ratio))
        # what was drawn is a draw of this Gaussian
        z = (after - now.mean.detach()) / now.std
        assert 0.5 < float(z.square().mean()) < 2.0


# In a training


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(
    tokenizer: Any, learner: Any, *, kl: float = 0.0, scheduler: Any = None, eta: float = 1.0, **more: Any
) -> Trainer:
    noise = more.pop("noise", 0.0)
    pipe = with_lora(tiny_pipe(scheduler, tokenizer=tokenizer))
    call = {"eta": eta} if eta else {}
    base = (lambda: adapters_off(pipe)) if kl else None
    return Trainer(
        DifferentiableSampler(pipe, num_inference_steps=3, guidance_scale=3.0, noise=noise, base_model=base, **call),
        Objective({"brightness": Brightness(ClockConfig())}),
        learner,
        ["a", "b", "c"],
        TrainSettings(**{"steps": 4, "batch_size": 4, "learning_rate": 3e-2, **more}),
        regularizers=RegularizerSettings(kl=kl),
        device="cpu",
    )


def ddpo(**more: Any) -> PolicyGradient:
    return PolicyGradient(settings(**more), ByPrompt(8, 4))


def test_it_trains_on_a_reward_without_gradient_and_counts_what_it_asks(tokenizer: Any) -> None:
    one = trainer(tokenizer, grpo(settings(minibatches=2, inner_epochs=2, steps=2)), kl=0.1, images_per_prompt=2)
    report = one.train_step()
    assert report.optimizer_steps == 4
    assert report.reward_queries == 4
    assert report.penalties["kl"] >= 0
    assert 0 < report.learner["clipped"] <= 1  # the first minibatch has none, later ones have
    assert report.grad_norm > 0


def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Any) -> None:
    whole = trainer(tokenizer, ddpo(minibatches=2), steps=3)
    reports = list(whole)
    first = trainer(tokenizer, ddpo(minibatches=2), steps=3)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(tokenizer, ddpo(minibatches=2), steps=3)
    load_checkpoint(second, tmp_path / "000002")
    assert second.learner.state_dict() == first.learner.state_dict()
    (report,) = list(second)
    assert (report.loss, report.reward) == (reports[2].loss, reports[2].reward)
    for mine, other in zip(
        lora_state(second.sampler.pipe).values(), lora_state(whole.sampler.pipe).values(), strict=True
    ):
        assert torch.equal(mine, other)


def test_what_has_no_probabilities_is_refused_by_name(tokenizer: Any) -> None:
    one = trainer(tokenizer, ddpo(), eta=0.0)
    with pytest.raises(SamplerError, match=r"no step of DDIMScheduler draws noise.*model.noise.*model.call.eta 1"):
        one.train_step()
    memory = make_scheduler(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    one = trainer(tokenizer, ddpo(), scheduler=memory, eta=0.0)
    with pytest.raises(SamplerError, match=r"a step of DPMSolverMultistepScheduler builds on earlier predictions"):
        one.train_step()
    one = trainer(tokenizer, ddpo(), scheduler=make_scheduler(diffusers.DDPMScheduler), eta=0.0, noise=0.5)
    with pytest.raises(SamplerError, match=r"DDPMScheduler draws noise of its own.*leave out model.noise"):
        one.train_step()
    one = trainer(tokenizer, ddpo(steps=9))
    with pytest.raises(DraftError, match=r"method.steps: 2 of 3 sampler steps draw noise, fewer than 9; use 2 or less"):
        one.train_step()
