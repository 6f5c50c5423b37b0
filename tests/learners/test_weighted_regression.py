"""Importance fine-tuning: on a mixture of Gaussians, whose tilted weights are known, and weights worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from draft_core import DifferentiableSampler, Objective, Trainer
from draft_core.adapters.lora import adapters_off, lora_state, trainable
from draft_core.errors import RecipeError, SamplerError
from draft_core.learners.importance_weights import acceptance, effective_share, normalised
from draft_core.learners.path_samples import log_density, log_density_then
from draft_core.learners.recorded_runs import apart, record
from draft_core.learners.weighted_regression import WeightedRegression
from draft_core.plan import StepPlan
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.chains import Mixture, batch_of, ddim, points, scored
from tests.support.families import FAMILIES
from tests.support.tiny import Brightness, ClockConfig, Nan, RednessConfig, byte_tokenizer, tiny_pipe, with_lora

SETTINGS: dict[str, Any] = {
    "temperature": 1.0,
    "path_weights": True,
    "weighting": "rejection",
    "acceptance_rate": None,
    "buffer": 8,
    "fits": 2,
    "levels": 2,
}


def settings(**more: Any) -> Any:
    return SimpleNamespace(**{**SETTINGS, **more})


# Weights


def test_the_effective_share_is_kongs() -> None:
    weights = np.array([0.1, 2.0, 3.0, 0.5])
    expected = weights.sum() ** 2 / (weights**2).sum() / 4
    assert effective_share([math.log(w) + 700 for w in weights]) == pytest.approx(expected)
    assert effective_share([0.0, -math.inf, -math.inf]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_samples_are_accepted_at_the_wanted_rate_by_their_weights(rate: float) -> None:
    log_weights = list(np.random.default_rng(0).normal(0, 3, 50))
    chances = acceptance(log_weights, rate)
    assert np.mean(chances) == pytest.approx(rate, abs=1e-9)
    below = [(weight, chance) for weight, chance in zip(log_weights, chances, strict=True) if chance < 1]
    ratios = [chance / math.exp(weight) for weight, chance in below]
    assert rate == 1.0 or np.allclose(ratios, ratios[0])
    assert acceptance([0.0, -math.inf], 1.0) == [1.0, 0.0]


def test_normalised_weights_are_a_softmax_times_their_number() -> None:
    given = [0.3, -1.0, 500.0, 499.0]
    expected = 4 * torch.softmax(torch.tensor(given, dtype=torch.float64), 0)
    assert normalised(given) == pytest.approx(expected.tolist())


# A mixture of three Gaussians

MEANS = torch.tensor([[-3.0, 0.0], [3.0, -1.0], [0.0, 3.0]])
WIDTH = 0.5
SLOPE = torch.tensor([0.4, -0.2])
STEPS = 8


def mixture(**more: Any) -> tuple[Mixture, DifferentiableSampler]:
    denoiser = Mixture(MEANS, WIDTH, ddim().alphas_cumprod)
    return denoiser, points(denoiser, 2, STEPS, base_model=denoiser.untuned, **more)


def tilted() -> torch.Tensor:
    """Weights of the modes under p(x) exp(slope x): the Gaussians keep their width, and move."""
    return torch.softmax(MEANS @ SLOPE + WIDTH**2 * SLOPE.square().sum() / 2, dim=0)


def mode_weights(sampler: DifferentiableSampler, count: int, update: int) -> torch.Tensor:
    batch = batch_of(count, update)
    with torch.no_grad():
        plan = StepPlan(STEPS, frozenset())
        drawn = sampler(batch.prompts, plan=plan, generator=list(batch.generators)).images.flatten(1)
    nearest = torch.cdist(drawn, MEANS + WIDTH**2 * SLOPE).argmin(1)
    return torch.bincount(nearest, minlength=3) / count


def test_the_modes_get_the_weights_of_the_tilted_mixture() -> None:
    denoiser, sampler = mixture(scheduler=ddim(set_alpha_to_one=True))  # its last step draws no noise
    learner = WeightedRegression(settings(acceptance_rate=0.3, buffer=512, fits=32, levels=1))
    optimizer = torch.optim.Adam(denoiser.correction.parameters())
    expected, updates = tilted(), 24
    before = (mode_weights(sampler, 1000, 900) - expected).abs().sum() / 2
    assert before > 0.4
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - update / updates)
        for loss in learner.losses(batch_of(512, update), sampler, scored(lambda x: x @ SLOPE)):
            (loss.value * loss.share).backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
    after = (mode_weights(sampler, 4000, 901) - expected).abs().sum() / 2
    assert after <= 0.05


def test_the_mean_weight_of_another_chain_is_that_of_the_base_chain() -> None:
    """E[w] under any chain is E[exp(reward)] under the base chain: exact for the discrete steps."""
    denoiser, sampler = mixture()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.nn.init.normal_(denoiser.correction[-1].weight, std=0.02)
    alone, base = apart(sampler)
    assert base is not None
    (rollout,) = record(alone, batch_of(4000, 0))
    steps = sorted(alone.noisy_steps)
    assert steps == list(range(STEPS))
    with base():
        under_base = log_density(alone, rollout, steps)
        (of_base,) = record(alone, batch_of(4000, 1))
    log_ratio = under_base - log_density_then(rollout, steps)
    assert float(log_ratio.std()) > 0.1, "the chains are the same"
    weights = (log_ratio + rollout.images.flatten(1) @ SLOPE).exp()
    expected = (of_base.images.flatten(1) @ SLOPE).exp()
    error = math.sqrt(float(weights.var() + expected.var()) / 4000)
    assert abs(float(weights.mean() - expected.mean())) < 3 * error


def test_the_target_is_noise_that_leads_to_the_sample() -> None:
    """The loss of the exact denoiser of one Gaussian, eps = sigma x, in closed form."""
    denoiser = Mixture(torch.zeros(1, 2), 1.0, ddim().alphas_cumprod)
    sampler = points(denoiser, 2, 4, base_model=denoiser.untuned)
    learner = WeightedRegression(settings(path_weights=False, acceptance_rate=1.0, fits=6, levels=1, buffer=0))
    variance = float(record(sampler, batch_of(4000, 4))[0].images.var())  # of x0, which few steps make less than 1
    number = batch_of(4000, 3).rng.randrange(4)
    alpha2 = float(denoiser.alphas[ddim_timesteps(4)[number]])
    losses = learner.losses(batch_of(4000, 3), sampler, scored(lambda x: 0 * x[:, 0]))
    first = next(losses)
    # sigma (alpha x0 + sigma eps) - eps
    expected = alpha2 * (1 - alpha2) * variance + alpha2**2
    assert first.value.item() == pytest.approx(expected, rel=0.1)
    assert first.report == {"effective_share": pytest.approx(1.0), "acceptance_rate": 1.0}
    assert first.divergence is not None
    assert first.divergence.item() == 0.0


def ddim_timesteps(steps: int) -> list[int]:
    scheduler = ddim()
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


# In a training


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(tokenizer: Any, learner: Any, *, base: bool = True, kl: float = 0.0, **more: Any) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer))
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=3,
        guidance_scale=3.0,
        eta=1.0,
        base_model=partial(adapters_off, pipe) if base else None,
        **more.pop("call", {}),
    )
    return Trainer(
        sampler,
        Objective({"brightness": Brightness(ClockConfig())}),
        learner,
        ["a", "b", "c"],
        TrainSettings(**{"steps": 3, "batch_size": 3, "learning_rate": 3e-2, **more}),
        regularizers=RegularizerSettings(kl=kl),
        device="cpu",
    )


def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Any) -> None:
    learner = partial(WeightedRegression, settings(buffer=4))
    whole = trainer(tokenizer, learner(), kl=0.1)
    reports = list(whole)
    assert reports[0].reward_queries == 3
    assert reports[0].optimizer_steps == 2
    assert 0 < reports[2].learner["acceptance_rate"] <= 1
    assert reports[2].penalties["kl"] > 0
    first = trainer(tokenizer, learner(), kl=0.1)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(tokenizer, learner(), kl=0.1)
    load_checkpoint(second, tmp_path / "000002")
    assert 1 <= len(second.learner.buffer) == len(first.learner.buffer) <= 4
    (report,) = list(second)
    assert (report.loss, report.learner) == (reports[2].loss, reports[2].learner)
    states = [lora_state(one.sampler.pipe) for one in (second, whole)]
    assert all(torch.equal(mine, other) for mine, other in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "FLUX.1"])
def test_an_update_of_a_flow_model(name: str) -> None:
    family = next(family for family in FAMILIES if family.name.startswith(name))
    pipe = with_lora(family.pipe(), std=0.1)
    sampler = DifferentiableSampler(
        pipe, num_inference_steps=3, noise=1.0, base_model=partial(adapters_off, pipe), **family.call(torch.float32)
    )
    batch = replace(batch_of(2, 0), prompts=["a cat", "a red dog"])
    learner = WeightedRegression(settings(acceptance_rate=1.0, fits=1, levels=3))
    score = scored(lambda x: x.mean(1))
    for update in range(2):  # the second chooses among remembered samples too
        losses = list(learner.losses(replace(batch, update=update), sampler, score))
        assert [loss.step for loss in losses][-1]
        for loss in losses:
            assert loss.divergence is not None
            assert loss.divergence.item() > 0
            gradients = torch.autograd.grad(loss.value, trainable(pipe), retain_graph=True, allow_unused=True)
            assert sum(float(part.norm()) for part in gradients if part is not None) > 0
    ratios = [sample.log_ratio for sample in learner.buffer]
    assert len(ratios) == 4
    assert all(ratio != 0 and math.isfinite(ratio) for ratio in ratios)


def test_few_samples_that_stand_for_all_are_said(tokenizer: Any) -> None:
    one = trainer(tokenizer, WeightedRegression(settings(temperature=1e-9, weighting="softmax")), batch_size=12)
    report = one.train_step()
    assert report.learner == {"effective_share": pytest.approx(1 / 12)}
    (note,) = report.notes
    assert note == (
        "the weights of 12 samples are worth 1.0: few of them stand for all; raise method.temperature, or leave out "
        "path weights"
    )


def test_rewards_that_are_not_finite_skip_the_step_and_are_forgotten(tokenizer: Any) -> None:
    one = trainer(tokenizer, WeightedRegression(settings(path_weights=False)))
    one.scoring.objective = Objective({"redness": Nan(RednessConfig(), calls={1})})
    first, second = one.train_step(), one.train_step()
    assert first.optimizer_steps == 0
    (problem,) = first.skipped
    assert "reward 'redness' of the prompt" in problem
    assert second.optimizer_steps == 2
    assert len(one.learner.buffer) == 3


def test_paths_that_cannot_be_weighed_are_refused(tokenizer: Any) -> None:
    with pytest.raises(SamplerError, match="the sampler knows no base model to weigh paths by; give it one"):
        trainer(tokenizer, WeightedRegression(settings()), base=False).train_step()
    one = trainer(tokenizer, WeightedRegression(settings()), call={"num_images_per_prompt": 2})
    with pytest.raises(RecipeError, match=r"a call makes several of each prompt; set train.images_per_prompt instead"):
        one.train_step()
