"""A moving cap, and rewards at their worst near an image: closed forms, and what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core import (
    DifferentiableSampler,
    DirectLearner,
    DraftK,
    Objective,
    Trainer,
    TrainSettings,
    load_recipe,
)
from draft_core.cost.work_of_plans import PlannedWork
from draft_core.errors import RecipeError, RewardError
from draft_core.training import robust, scoring
from draft_core.training.distributed import Processes
from draft_core.training.robust import quantile, worst_scores, worst_shift
from draft_core.training.scoring import Scoring
from draft_core.training.step_report import Tally
from tests.support.runs import taken_up
from tests.support.tiny import byte_tokenizer, tiny_pipe, with_lora

SLOPE = torch.linspace(-1, 2, 3 * 4 * 4).view(3, 4, 4)


def images(count: int = 4) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return (0.3 + 0.4 * torch.rand(count, 3, 4, 4, generator=source)).requires_grad_()


def brightness(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


def linear(images: torch.Tensor) -> torch.Tensor:
    return (images * SLOPE).sum((1, 2, 3))


def near(images: torch.Tensor) -> torch.Tensor:
    """The highest where the image is 0.5 all over."""
    return -(images - 0.5).square().sum((1, 2, 3))


def scored(objective: Objective, at: torch.Tensor, normalize: str = "none") -> tuple[Any, Tally]:
    tally = Tally()
    return Scoring(objective, normalize, Processes(cpu=True)).score(tally, at, ["a"] * len(at)), tally


# A cap at a quantile


def check_cap(share: float) -> None:
    at = images(5)
    scores, _ = scored(Objective({"bright": brightness}, {"bright": 3.0}, quantiles={"bright": share}), at)
    values = sorted(brightness(at).tolist())
    place = share * 4
    cap = values[int(place)] + (place - int(place)) * (values[min(int(place) + 1, 4)] - values[int(place)])
    torch.testing.assert_close(scores.total, 3 * brightness(at).clamp(max=cap))
    (gradient,) = torch.autograd.grad(scores.total.sum(), at)
    gives = (gradient.flatten(1).abs().sum(1) > 0).tolist()
    assert gives == [value < cap for value in brightness(at).tolist()]


@pytest.mark.parametrize("share", [0.25, 0.6, 0.75])
def test_scores_above_the_quantile_of_their_pass_earn_no_more(share: float) -> None:
    check_cap(share)


def test_another_quantile_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "quantile", lambda scores, share: quantile(scores, 1 - share))
    with pytest.raises(AssertionError):
        check_cap(0.75)


def test_a_fixed_cap_of_another_reward_stays_and_scores_are_divided_first_of_all() -> None:
    at = images(4)
    rewards = {"bright": brightness, "near": near}
    objective = Objective(rewards, caps={"near": -0.1}, quantiles={"bright": 0.5})
    scores, tally = scored(objective, at, "scale")
    divisors = {name: float(reward(at).detach().std(correction=0)) for name, reward in rewards.items()}
    expected = brightness(at).clamp(
        max=float(brightness(at).detach().median() + brightness(at).detach().sort()[0][2]) / 2
    )
    expected = expected / divisors["bright"] + near(at).clamp(max=-0.1) / divisors["near"]
    torch.testing.assert_close(scores.total, expected)
    assert tally.queries == 4


# The worst within a ball


def check_linear(radius: float) -> None:
    """r = w x falls by radius |w|^2 / rms(w), wherever it is."""
    at = images()
    scores, plain = worst_scores(Objective({"linear": linear}, radii={"linear": radius}), at, ["a"] * 4, {})
    drop = radius * SLOPE.square().sum() / SLOPE.square().mean().sqrt()
    torch.testing.assert_close(plain["linear"], linear(at).detach())
    torch.testing.assert_close(scores.total, linear(at) - drop)
    (gradient,) = torch.autograd.grad(scores.total.sum(), at)
    torch.testing.assert_close(gradient, SLOPE.expand_as(at))


@pytest.mark.parametrize("radius", [0.01, 0.1])
def test_a_linear_reward_falls_by_its_slope_times_the_radius(radius: float) -> None:
    check_linear(radius)


def test_a_step_up_instead_of_down_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "worst_shift", lambda at, gradient, radius: worst_shift(at, -gradient, radius))
    with pytest.raises(AssertionError):
        check_linear(0.01)


def test_the_gradient_is_that_at_the_worst_point() -> None:
    """r = -|x - c|^2: the worst lies further out by rho d / rms(d), d = x - c, with the gradient of there."""
    at, radius = images(), 0.05
    scores, _ = worst_scores(Objective({"near": near}, radii={"near": radius}), at, ["a"] * 4, {})
    distance = (at - 0.5).detach()
    size = distance.square().mean((1, 2, 3), keepdim=True).sqrt()
    out = distance * (1 + radius / size)
    torch.testing.assert_close(scores.total, -out.square().sum((1, 2, 3)))
    (gradient,) = torch.autograd.grad(scores.total.sum(), at)
    torch.testing.assert_close(gradient, -2 * out)


def test_the_worst_is_an_image_and_where_nothing_falls_it_is_the_image_itself() -> None:
    at = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    shifted = at + worst_shift(at, torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1), 0.2)
    torch.testing.assert_close(shifted.flatten(), torch.tensor([0.0, 1.0, 0.7]))
    assert torch.equal(worst_shift(at, torch.zeros_like(at), 0.2), torch.zeros_like(at))


def test_the_update_tells_the_plain_score_the_drop_and_both_queries() -> None:
    at = images()
    with torch.no_grad():  # of a method that needs no gradient, too
        scores, tally = scored(Objective({"linear": linear}, radii={"linear": 0.01}), at)
    drop = 0.01 * float(SLOPE.square().sum() / SLOPE.square().mean().sqrt())
    ((count, mean_total, means),) = tally.scored
    ((reported, numbers),) = tally.reported
    assert (count, reported, tally.queries) == (4, 4, 8)
    assert means["linear"] == pytest.approx(float(linear(at).detach().mean()), rel=1e-5)
    assert mean_total == pytest.approx(means["linear"] - drop, rel=1e-4)
    assert numbers == {"drop of linear": pytest.approx(drop, rel=1e-4)}
    assert not scores.total.requires_grad


def test_a_reward_without_a_gradient_has_no_worst() -> None:
    objective = Objective({"count": lambda images: (images > 0.5).float().sum((1, 2, 3))}, radii={"count": 0.01})
    with pytest.raises(
        RewardError, match="reward 'count': it gives the images no gradient, by which to find its worst"
    ):
        scored(objective, images())


# In a training


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def trainer(tokenizer: Any, steps: int = 4, **settings: Any) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer), rank=2)
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=3.0)
    against = {"quantiles": {"bright": 0.5}, "radii": {"bright": 0.02}}
    objective = Objective({"bright": brightness}, **against)
    made = TrainSettings(**{"steps": steps, "batch_size": 2, "learning_rate": 3e-2, **settings})
    return Trainer(sampler, objective, DirectLearner(DraftK(k=1)), ["a", "b", "c"], made, device="cpu")


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.parameters])


def test_a_resumed_training_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer)
    reports = list(whole)
    second = taken_up(lambda: trainer(tokenizer), tmp_path)
    assert [report.reward for report in second] == [report.reward for report in reports[2:]]
    assert torch.equal(weights(second), weights(whole))
    assert reports[0].learner["drop of bright"] > 0


def test_a_pass_of_one_image_has_no_quantile(tokenizer: Any) -> None:
    with pytest.raises(RecipeError, match="cap of reward 'bright': it is a quantile of the scores of a pass"):
        trainer(tokenizer, batch_size=1)


def test_the_forecast_asks_the_reward_twice_for_each_image(tokenizer: Any) -> None:
    counts = []
    for radii in ({}, {"bright": 0.02}):
        one = trainer(tokenizer)
        asked = []
        one.objective.rewards["bright"].register_forward_hook(lambda *_, asked=asked: asked.append(1))
        one.objective.radii = radii
        PlannedWork(one, one.learner.method).times()
        counts.append(len(asked))
    assert counts[1] == 2 * counts[0] > 0


# In a recipe

RECIPE = {
    "model": {"pretrained": "emoji", "num_inference_steps": 4},
    "prompts": ["a cat", "a dog"],
    "rewards": [{"kind": "jpeg"}],
    "method": {"kind": "draft-k"},
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"metrics": [{"kind": "jpeg-size", "worst_within": 0.1}]},
            "metrics.0.worst_within: a metric is not trained on",
        ),
        ({"metrics": [{"kind": "jpeg-size", "cap": {"quantile": 0.5}}]}, "metrics.0.cap: a metric is not trained on"),
        (
            {"rewards": [{"kind": "jpeg-size", "worst_within": 0.1}], "method": {"kind": "importance"}},
            "rewards.0.worst_within: reward 'jpeg-size' has no gradient, by which the worst is found; leave it out",
        ),
        (
            {"rewards": [{"kind": "jpeg", "worst_within": 0.1, "surrogate": {}}]},
            "rewards.0.worst_within: the surrogate is trained on",
        ),
        ({"rewards": [{"kind": "jpeg", "cap": {"quantile": 1.5}}]}, "cap.*quantile.*less than 1"),
        ({"rewards": [{"kind": "jpeg", "cap": {"share": 0.5}}]}, "rewards.0.cap.quantile: the field is missing"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({**RECIPE, **changed})


def test_both_are_read_from_an_entry() -> None:
    entry = {"kind": "jpeg", "cap": {"quantile": 0.75}, "worst_within": 0.01}
    (reward,) = load_recipe({**RECIPE, "rewards": [entry]}).rewards
    assert (reward.cap.quantile, reward.worst_within) == (0.75, 0.01)
    (reward,) = load_recipe({**RECIPE, "rewards": [{"kind": "jpeg", "cap": 2}]}).rewards
    assert reward.cap == 2.0
