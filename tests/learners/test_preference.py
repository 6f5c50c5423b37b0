"""Diffusion-DPO: against the published loss in a program of its own, and two modes whose tuned weights are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from draft_core import DifferentiableSampler, Objective, Trainer
from draft_core.adapters.lora import adapters_off, lora_state, trainable
from draft_core.errors import DraftError, RecipeError, SamplerError
from draft_core.learners.preference import PreferenceLearner, preference_loss
from draft_core.plan import StepPlan
from draft_core.rewards.image_files import read_image
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.chains import batch_of, ddim, points, scored
from tests.support.tiny import Brightness, ClockConfig, Nan, RednessConfig, byte_tokenizer, tiny_pipe, with_lora

SETTINGS: dict[str, Any] = {"pairs": None, "loss": "sigmoid", "beta": 2000.0, "fits": 1, "levels": 1}


def settings(**more: Any) -> Any:
    return SimpleNamespace(**{**SETTINGS, **more})


# The loss of a margin


def test_the_losses_are_the_published_ones() -> None:
    margins = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    sure = torch.ones(7, dtype=torch.float64)
    z = margins.detach().numpy()
    assert np.allclose(preference_loss(margins, sure, "sigmoid").detach(), np.log1p(np.exp(-z)), atol=1e-12)
    assert np.allclose(preference_loss(margins, sure, "ipo").detach(), (z - 0.5) ** 2, atol=1e-12)
    # a grade is the probability of the label: label smoothing of 1 - grade
    smoothed = 0.8 * np.log1p(np.exp(-z)) + 0.2 * np.log1p(np.exp(z))
    assert np.allclose(preference_loss(margins, 0.8 * sure, "sigmoid").detach(), smoothed, atol=1e-12)
    assert np.allclose(
        preference_loss(margins, 0.8 * sure, "ipo").detach(), 0.8 * (z - 0.5) ** 2 + 0.2 * (z + 0.5) ** 2, atol=1e-12
    )
    for kind in ("sigmoid", "ipo"):
        assert torch.autograd.gradcheck(lambda z, kind=kind: preference_loss(z, 0.7 * sure, kind), margins)
        (slope,) = torch.autograd.grad(preference_loss(margins, 0.5 * sure, kind).sum(), margins)
        assert torch.equal(slope.sign(), margins.detach().sign()), "a tie pulls to 0"


# Two modes

LEVELS, RANGE, WIDTH = 16, 12.0, 0.5
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
BASE = 0.6  # weight of the left mode
GAIN = 1.0  # reward of the right mode over that of the left one


def even_levels() -> Any:
    """A scheduler whose log signal-to-noise ratio falls evenly, so that all levels weigh alike in the likelihood."""
    alphas2 = torch.sigmoid(torch.linspace(RANGE / 2, -RANGE / 2, LEVELS, dtype=torch.float64))
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas2[:-1]])
    return ddim(num_train_timesteps=LEVELS, trained_betas=(1 - alphas2 / before).tolist())


class Modes(torch.nn.Module):
    """The exact eps of two Gaussians in the plane, of which only the log-odds of their weights is trained."""

    def __init__(self, alphas2: torch.Tensor) -> None:
        super().__init__()
        self.alphas2, self.is_tuned = alphas2, True
        self.shift = torch.nn.Parameter(torch.zeros(()))

    def forward(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        x, alpha2 = sample.flatten(1), self.alphas2[int(timestep)]
        variance = alpha2 * WIDTH**2 + 1 - alpha2
        away = x[:, None] - alpha2.sqrt() * MEANS
        odds = torch.tensor([BASE, 1 - BASE]).log()
        if self.is_tuned:
            odds = odds + torch.stack([torch.zeros(()), self.shift])
        weights = torch.softmax(odds - away.square().sum(2) / (2 * variance), dim=1)
        return ((1 - alpha2).sqrt() * (weights[..., None] * away).sum(1) / variance).view_as(sample)

    @contextmanager
    def untuned(self) -> Iterator[None]:
        self.is_tuned = False
        try:
            yield
        finally:
            self.is_tuned = True


def test_modes_get_the_weights_of_the_base_model_times_the_exponential_of_the_reward() -> None:
    """p_ref exp(r / beta), from labels by Bradley and Terry (Rafailov et al. 2023, equation 4).

    Over evenly spaced log signal-to-noise ratios the log-likelihood of an image is minus half their range times the
    mean of its summed squared errors, up to what does not depend on the model (Kingma et al. 2021, equation 17). So the
    setting that stands for beta is beta times dimensions times range.
    """
    beta, updates = 1.0, 40
    scheduler = even_levels()
    denoiser = Modes(scheduler.alphas_cumprod)
    sampler = points(denoiser, 2, LEVELS, scheduler=scheduler, base_model=denoiser.untuned)
    spread = RANGE * LEVELS / (LEVELS - 1)
    learner = PreferenceLearner(settings(beta=beta * 2 * spread, levels=LEVELS))
    source = torch.Generator().manual_seed(0)

    def noisy_reward(x: torch.Tensor) -> torch.Tensor:
        """With Gumbel noise, so that the better of two is labelled so with the probability sigmoid(difference)."""
        uniform = torch.rand(len(x), generator=source).clamp(1e-6, 1 - 1e-6)
        return GAIN * (x[:, 0] > 0) - (-uniform.log()).log()

    optimizer = torch.optim.Adam([denoiser.shift])
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - update / updates)
        batch = replace(batch_of(256, update), prompts=[str(index // 2) for index in range(256)])
        for loss in learner.losses(batch, sampler, scored(noisy_reward)):
            optimizer.zero_grad()
            (loss.value * loss.share).backward()
            optimizer.step()
    tilted = (1 - BASE) * math.exp(GAIN / beta)
    expected = tilted / (BASE + tilted)
    with torch.no_grad():
        generators = list(batch_of(4000, 900).generators)
        drawn = sampler(["x"] * 4000, plan=StepPlan(LEVELS, frozenset()), generator=generators).images
    found = float((drawn.flatten(1)[:, 0] > 0).float().mean())
    assert expected - (1 - BASE) > 0.2
    assert found == pytest.approx(expected, abs=0.03)


# In a training


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


COLUMNS = {
    "winner": ["red.png", "red.png", "grey.png", "grey.png"],
    "loser": ["grey.png", "blue.png", "blue.png", "red.png"],
    "grade": ["", "0.75", "", ""],
    "tie": ["false", "", "", "true"],
}
GRADES = [1.0, 0.75, 1.0, 0.5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, colour in {"red": (220, 30, 40), "grey": (90, 95, 100), "blue": (10, 20, 200)}.items():
        noise = np.random.default_rng(len(name)).integers(-10, 11, (16, 16, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def trainer(tokenizer: Any, learner: Any, *, base: bool = True, kl: float = 0.0, **more: Any) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer))
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=3,
        base_model=partial(adapters_off, pipe) if base else None,
        **{"guidance_scale": 3.0, **more.pop("call", {})},
    )
    of_file = learner.settings.pairs is not None
    images = {} if of_file else {"images_per_prompt": 2}
    return Trainer(
        sampler,
        Objective({"brightness": Brightness(ClockConfig())}),
        learner,
        ["a", "b", "c", "d"],
        TrainSettings(**{"steps": 3, "batch_size": 4, "learning_rate": 3e-2, **images, **more}),
        regularizers=RegularizerSettings(kl=kl),
        device="cpu",
        columns=COLUMNS if of_file else {},
    )


def test_an_update_on_a_file_is_the_published_loss_in_a_program_of_its_own(tokenizer: Any, folder: Path) -> None:
    """Noise, levels, guidance, means and factors, written again from the publication."""
    one = trainer(tokenizer, PreferenceLearner(settings(pairs=folder / "pairs.jsonl", beta=500.0)))
    pipe, update = one.sampler.pipe, 0
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in trainable(pipe):
            torch.nn.init.normal_(weight, std=0.2)
    (batch,) = one.batches.draw(update)
    assert sorted(batch.prompts) == ["a", "b", "c", "d"]
    (loss,) = one.learner.losses(batch, one.sampler, scored(lambda x: 0 * x[:, 0]))

    def encoded(name: str) -> torch.Tensor:
        mean = pipe.vae.encode(2 * read_image(folder / name) - 1).latent_dist.mean
        return mean * pipe.vae.config.scaling_factor

    def squared_errors(name: str, prompt: str, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        noisy = pipe.scheduler.add_noise(encoded(name), noise, timestep[None])
        texts = [value[0] for value in pipe.encode_prompt([prompt], "cpu", 1, True)[:2]]
        with_text, without = (pipe.unet(noisy, timestep, text[None]).sample for text in texts)
        return (without + 3.0 * (with_text - without) - noise).square().mean(dim=[1, 2, 3])

    pipe.scheduler.set_timesteps(3)
    losses, agreements = [], []
    with torch.no_grad():
        timestep = pipe.scheduler.timesteps[Random(f"plan {one.settings.seed} {update}").sample(range(3), 1)[0]]
        for prompt, generator in zip(batch.prompts, batch.generators, strict=True):
            row = "abcd".index(prompt)
            seed = Random(f"pair {generator.initial_seed()} {update}").getrandbits(62)
            source = torch.Generator().manual_seed(seed)
            torch.randn((1, 4, 8, 8), generator=source)  # with which the call begins
            noise = torch.randn((1, 4, 8, 8), generator=source)
            names = [COLUMNS["winner"][row], COLUMNS["loser"][row]]
            model_w, model_l = (squared_errors(name, prompt, noise, timestep) for name in names)
            with adapters_off(pipe):
                ref_w, ref_l = (squared_errors(name, prompt, noise, timestep) for name in names)
            inside = -0.5 * 500.0 * ((model_w - model_l) - (ref_w - ref_l))
            smoothing = 1 - GRADES[row]
            losses.append(
                -torch.nn.functional.logsigmoid(inside) * (1 - smoothing)
                - torch.nn.functional.logsigmoid(-inside) * smoothing
            )
            if GRADES[row] > 0.5:
                agreements.append(float(inside > 0))
    expected = torch.cat(losses).mean()
    assert abs(float(expected) - math.log(2)) > 1e-3
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-4)  # beta is 500: it magnifies rounding
    assert loss.report["agreement"] == pytest.approx(np.mean(agreements))
    assert loss.images == 4
    assert loss.notes == ["trained on the pairs in pairs.jsonl alone: the rewards judge the evaluations"]


def test_own_samples_are_paired_best_against_worst(tokenizer: Any) -> None:
    one = trainer(tokenizer, PreferenceLearner(settings()))
    batch = replace(batch_of(6, 0), prompts=["a", "a", "a", "b", "b", "b"])
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.2, 0.2])
    pairs = one.learner._of_samples(batch, one.sampler, lambda images, prompts: SimpleNamespace(total=rewards))
    ((best, tie),) = pairs
    plan = StepPlan(3, frozenset())
    drawn = one.sampler(batch.prompts, plan=plan, generator=list(batch_of(6, 0).generators)).latents
    assert torch.equal(best.winner, drawn[1])
    assert torch.equal(best.loser, drawn[0])
    assert (best.prompt, best.grade, best.seed) == ("a", 1.0, 1)
    assert (tie.prompt, tie.grade) == ("b", 0.5)


@pytest.mark.parametrize("of_file", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(
    of_file: bool, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    learner = partial(PreferenceLearner, settings(pairs=folder / "p" if of_file else None, fits=2, levels=2))
    whole = trainer(tokenizer, learner(), kl=0.1)
    reports = list(whole)
    assert reports[0].reward_queries == (0 if of_file else 4)
    assert reports[0].headline.startswith("loss" if of_file else "reward")
    assert reports[0].optimizer_steps == 2
    assert reports[2].penalties["kl"] > 0
    assert 0 <= reports[2].learner["agreement"] <= 1
    first = trainer(tokenizer, learner(), kl=0.1)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(tokenizer, learner(), kl=0.1)
    load_checkpoint(second, tmp_path / "000002")
    (report,) = list(second)
    assert (report.loss, report.learner) == (reports[2].loss, reports[2].learner)
    states = [lora_state(one.sampler.pipe) for one in (second, whole)]
    assert all(torch.equal(mine, other) for mine, other in zip(*(state.values() for state in states), strict=True))


def test_a_lora_begins_as_the_base_model(tokenizer: Any, folder: Path) -> None:
    report = trainer(tokenizer, PreferenceLearner(settings(pairs=folder / "p", beta=100.0))).train_step()
    assert report.learner == {"margin": 0.0, "agreement": 0.5}
    assert report.loss == pytest.approx(math.log(2))


def test_images_of_another_size_are_scaled_and_cropped_and_that_is_said(tokenizer: Any, tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 24:72] = (200, 100, 50)  # the middle square, and what blends into it
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:16, 40:56]).save(tmp_path / "small.png")
    learner = PreferenceLearner(settings(pairs=tmp_path / "pairs.jsonl"))
    columns = {"winner": ["wide.png"], "loser": ["small.png"]}
    learner.check_columns(columns)
    one = trainer(tokenizer, learner)
    learner.check(one.sampler)
    assert learner.encoder is not None
    assert learner.encoder.size == (16, 16)
    assert torch.allclose(learner._encoded(tmp_path / "wide.png"), learner._encoded(tmp_path / "small.png"), atol=1e-4)
    assert learner._notes(0)[1:] == ["1 of 2 images of pairs are scaled and cropped to 16 x 16 pixels"]
    assert learner._notes(1) == []


def test_rewards_that_are_not_finite_skip_the_step(tokenizer: Any) -> None:
    one = trainer(tokenizer, PreferenceLearner(settings(fits=2)))
    one.scoring.objective = Objective({"redness": Nan(RednessConfig(), calls={1})})
    first, second = one.train_step(), one.train_step()
    assert first.optimizer_steps == 0
    assert "reward 'redness' of the prompt" in first.skipped[0]
    assert second.optimizer_steps == 2


def test_what_it_cannot_use_is_one_sentence(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match="the sampler knows no base model to compare with; give it one"):
        trainer(tokenizer, PreferenceLearner(settings()), base=False).train_step()
    one = trainer(tokenizer, PreferenceLearner(settings()), images_per_prompt=1, call={"num_images_per_prompt": 2})
    with pytest.raises(RecipeError, match=r"a call makes several of each prompt; leave that out"):
        one.train_step()
    one = trainer(tokenizer, PreferenceLearner(settings()), images_per_prompt=1)
    with pytest.raises(RecipeError, match=r"train.images_per_prompt: no prompt of a pass has two images"):
        one.train_step()
    with pytest.raises(RecipeError, match=r"method.levels: levels = 4 is larger than the number of sampler steps, 3"):
        trainer(tokenizer, PreferenceLearner(settings(levels=4))).train_step()
    (tmp_path / "torn.png").write_bytes((folder / "red.png").read_bytes()[:-40])
    learner = PreferenceLearner(settings(pairs=tmp_path / "pairs.jsonl"))
    with pytest.raises(DraftError, match=r"torn.png: cannot be read as an image"):
        learner.check_columns({"winner": ["torn.png"], "loser": ["red.png"]})
