"""A KL in units of the reward's gradient: closed forms, its unit, exact resume, and what refuses it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from draft_core import DirectLearner, DraftK, Objective, Trainer, TrainSettings, load_recipe
from draft_core.adapters.lora import adapters_off, lora_state
from draft_core.cost.work_of_plans import count_calls
from draft_core.errors import DraftError, RecipeError
from draft_core.learners.policy_gradient import grpo
from draft_core.learners.targets import TargetLearner
from draft_core.plan import Renoising
from draft_core.registry.gradient_free import GRPO
from draft_core.registry.targets import Target
from draft_core.sampling import base_model
from draft_core.training.settings import AnchorSettings, RegularizerSettings
from draft_core.training.step_report import Tally
from tests.support.regularized import redness, sampler_away
from tests.support.runs import taken_up
from tests.support.tiny import byte_tokenizer

SHARE = 0.7


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(
    tokenizer: Any, learner: Any = None, *, weight: float = 1.0, ema: float | None = None, **regularizers: Any
) -> Trainer:
    return Trainer(
        sampler_away(tokenizer),
        Objective({"redness": redness}, weights={"redness": weight}),
        learner or DirectLearner(DraftK(k=1)),
        ["a", "b", "c"],
        TrainSettings(steps=4, batch_size=3, learning_rate=3e-2),
        regularizers=RegularizerSettings(
            **(regularizers or {"kl_relative": SHARE}), kl_anchor=None if ema is None else AnchorSettings(ema=ema)
        ),
        device="cpu",
    )


def gradient(one: Trainer) -> torch.Tensor:
    """Of the first loss of an update in the LoRA, flat, penalties that are added to the loss included."""
    (batch,) = one.batches.draw(0)
    loss = next(iter(one.learner.losses(batch, one.sampler, partial(one.scoring.score, Tally()))))
    value = one.regularizers.added(loss.value, one.regularizers.penalties(loss.divergence))
    return flat(torch.autograd.grad(value, one.parameters))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# What is added


def check_rows() -> None:
    """By hand, three rows with g.d / |d| of -2.4, 0.8 and 0: only of the first, which leads away, is a share taken."""
    tuned = torch.tensor([[3.0, 4.0], [3.0, 4.0], [1.0, 1.0]], requires_grad=True)
    base = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    found = tuned * 1.0
    base_model.hold_back((found,), (base,), 0.5)
    (found * torch.tensor([[-4.0, 0.0], [0.0, 1.0], [2.0, -7.0]])).sum().backward()
    expected = torch.tensor([[-4 + 0.5 * 2.4 * 0.6, 0.5 * 2.4 * 0.8], [0.0, 1.0], [2.0, -7.0]])
    assert tuned.grad is not None
    torch.testing.assert_close(tuned.grad, expected)


def test_a_row_loses_a_share_of_what_leads_away_and_nothing_else() -> None:
    check_rows()


@pytest.mark.parametrize("name", ["normalize", "clamp_min"])
def test_a_distance_for_the_direction_and_a_pull_outwards_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = torch.nn.functional if name == "normalize" else torch.Tensor
    monkeypatch.setattr(owner, name, lambda tensor, *_, **__: tensor)
    with pytest.raises(AssertionError):
        check_rows()


def test_a_list_has_a_tensor_for_each_image_and_no_share_takes_nothing() -> None:
    parts = [torch.tensor([[3.0], [4.0]], requires_grad=True), torch.zeros(2, 1, requires_grad=True)]
    found = [part * 1.0 for part in parts]
    base_model.hold_back((found,), ([torch.zeros(2, 1), torch.ones(2, 1)],), 0.0)
    base_model.hold_back((found,), ([torch.zeros(2, 1), torch.zeros(2, 1)],), 1.0)
    (found[0] * torch.tensor([[-1.0], [0.0]]) + found[1]).sum().backward()
    torch.testing.assert_close(parts[0].grad, torch.tensor([[-1.0 + 0.36], [0.48]]))  # 0.6 of it leads away
    torch.testing.assert_close(parts[1].grad, torch.ones(2, 1))


def check_in_the_lora(tokenizer: Any) -> None:
    """The LoRA's gradient is that of the loss and of a penalty on |d|^2, row by row with a factor worked out here."""
    one, plain = trainer(tokenizer), trainer(tokenizer, lora_norm=0.0)
    assert plain.sampler.steps == 2  # counted before the calls are
    pipe, seen = plain.sampler.pipe, list[Any]()
    hook = pipe.unet.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output[0])), with_kwargs=True
    )
    (batch,) = plain.batches.draw(0)
    (loss,) = plain.learner.losses(batch, plain.sampler, partial(plain.scoring.score, Tally()))
    hook.remove()
    args, kwargs, tuned = seen[-1]  # the recorded call; the base model's own passes no hook
    with torch.no_grad(), adapters_off(pipe):
        base = pipe.unet(*args, **kwargs)[0]
    (arrived,) = torch.autograd.grad(loss.value, tuned, retain_graph=True)
    penalty = torch.zeros(())
    for row, of_base, slope in zip(tuned, base, arrived, strict=True):
        squares, outward = (row - of_base).square().sum(), -(slope * (row - of_base)).sum()
        penalty = penalty + SHARE * max(0.0, float(outward.detach() / squares.detach())) * squares / 2
    assert penalty > 0
    expected = flat(torch.autograd.grad(loss.value + penalty, plain.parameters, retain_graph=True))
    alone = flat(torch.autograd.grad(loss.value, plain.parameters))
    assert (expected - alone).norm() > 0.01 * alone.norm()
    torch.testing.assert_close(gradient(one), expected, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_the_lora_is_that_of_a_penalty_with_a_factor_for_each_row(tokenizer: Any) -> None:
    check_in_the_lora(tokenizer)


def test_a_share_that_is_given_in_the_place_of_taken_is_seen(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = base_model.hold_back
    monkeypatch.setattr(base_model, "hold_back", lambda output, expected, share: real(output, expected, -share))
    with pytest.raises(AssertionError):
        check_in_the_lora(tokenizer)


def test_its_share_has_no_unit_and_the_weight_of_kl_has_the_rewards(tokenizer: Any) -> None:
    small, large = (gradient(trainer(tokenizer, weight=weight)) for weight in (1.0, 1e4))
    torch.testing.assert_close(large / 1e4, small, rtol=1e-4, atol=1e-8)
    small, large = (gradient(trainer(tokenizer, weight=weight, kl=5.0)) for weight in (1.0, 1e4))
    assert (large / 1e4 - small).norm() > 0.1 * small.norm()


# What else sees it


def test_it_is_reported_and_not_added_to_the_loss(tokenizer: Any) -> None:
    one = trainer(tokenizer)
    plain, report = gradient(trainer(tokenizer, lora_norm=0.0)), one.train_step()
    assert report.penalties["kl"] > 0
    assert report.loss == pytest.approx(-report.reward)
    found = trainer(tokenizer).reward_gradients()[0]
    assert found["redness"] == pytest.approx(float(plain.norm()), rel=1e-5)  # the reward's own, not held back


def test_it_is_taken_from_a_moving_anchor_and_resumed_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    make = partial(trainer, tokenizer, ema=0.5)
    whole = make()
    reports = list(whole)
    second = taken_up(make, tmp_path)
    assert [report.loss for report in second] == [report.loss for report in reports[2:]]
    states = [flat(lora_state(each.sampler.pipe).values()) for each in (whole, second)]
    assert torch.equal(*states)


def test_the_forecast_counts_the_calls_of_the_base_model(tokenizer: Any) -> None:
    plan = DraftK(k=2).plan(2, Random(0))
    with_it, without = (
        count_calls(trainer(tokenizer, **settings), plan, Renoising(), 1.0).plain
        for settings in ({"kl_relative": 1.0}, {"lora_norm": 0.0})
    )
    assert with_it == without + 2


# What is refused

RECIPE: dict[str, Any] = {
    "model": {"pretrained": "emoji", "num_inference_steps": 4},
    "prompts": ["a cat", "a dog"],
    "rewards": [{"kind": "jpeg"}],
    "method": {"kind": "draft-k"},
    "regularizers": {"kl_relative": 1.0},
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"regularizers": {"kl": 1.0, "kl_relative": 1.0}}, "regularizers.kl_relative: kl has a weight already; leave"),
        ({"regularizers": {"kl_relative": 1.5}}, "kl_relative.*less than or equal to 1"),
        (
            {"regularizers": {"kl_relative": 1.0, "kl_gate": ["jpeg-size"]}, "metrics": [{"kind": "jpeg-size"}]},
            "regularizers.kl_gate: without a weight of kl it would have no effect",
        ),
        ({"method": {"kind": "target"}}, "regularizers.kl_relative: method 'target' does not backpropagate the scores"),
        ({"method": {"kind": "importance"}}, "kl_relative: method 'importance' does not .* leave it out, or use kl or"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    assert load_recipe(RECIPE).regularizers.kl_relative == 1.0
    with pytest.raises(RecipeError, match=message):
        load_recipe({**RECIPE, **changed})


@pytest.mark.parametrize("make", [lambda: TargetLearner(Target()), lambda: grpo(GRPO())], ids=["target", "grpo"])
def test_a_method_that_does_not_train_through_the_sampler_is_refused(tokenizer: Any, make: Any) -> None:
    with pytest.raises(DraftError, match=r"regularizers\.kl_relative: the method does not backpropagate the scores"):
        trainer(tokenizer, make())
