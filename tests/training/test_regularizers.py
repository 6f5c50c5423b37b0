"""A KL gated by ranks, and one whose anchor moves: closed forms, exact resume, and what refuses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from draft_core import (
    DirectLearner,
    DraftK,
    DraftLV,
    Objective,
    Trainer,
    TrainSettings,
    load_recipe,
)
from draft_core.adapters import regularizers as module
from draft_core.adapters.lora import adapters_off, lora_state
from draft_core.adapters.regularizers import MovingAverage
from draft_core.cost.work_of_plans import PlannedWork
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.learners.learner import gated_mean
from draft_core.learners.policy_gradient import grpo
from draft_core.learners.preference import PreferenceLearner
from draft_core.learners.targets import TargetLearner
from draft_core.learners.weighted_regression import WeightedRegression
from draft_core.registry.gradient_free import DPO, GRPO, Importance
from draft_core.registry.targets import Target
from draft_core.training import scoring
from draft_core.training.distributed import Processes
from draft_core.training.robust import ranked_too_high
from draft_core.training.scoring import Scoring
from draft_core.training.settings import AnchorSettings, RegularizerSettings
from draft_core.training.step_report import Tally
from tests.support.regularized import redness, sampler_away
from tests.support.runs import taken_up
from tests.support.tiny import byte_tokenizer


def blueness(images: torch.Tensor) -> torch.Tensor:
    return images[:, 2].mean((1, 2))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(
    tokenizer: Any, learner: Any = None, *, ema: float | None = None, gated: bool = False, **settings: Any
) -> Trainer:
    eta = {} if learner is None or learner.needs_gradient else {"eta": 1.0}
    return Trainer(
        sampler_away(tokenizer, **eta),
        Objective({"redness": redness}),
        learner or DirectLearner(DraftK(k=2)),
        ["a", "b", "c"],
        TrainSettings(**{"steps": 4, "batch_size": 4, "learning_rate": 3e-2, **settings}),
        regularizers=RegularizerSettings(
            kl=3.0,
            kl_anchor=None if ema is None else AnchorSettings(ema=ema),
            kl_gate=("blueness",) if gated else (),
        ),
        gate=Objective({"blueness": blueness}) if gated else None,
        device="cpu",
    )


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


# The gate


def check_ranks() -> None:
    """By hand: shares of the images that each beats, equal ones halved, are 0.5 / 2.5 / 1.5 / 3.5 of 4, and so on."""
    trained, first, second = [1.0, 3.0, 2.0, 4.0], [4.0, 1.0, 2.0, 3.0], [0.0, 7.0, 7.0, 1.0]
    assert ranked_too_high(trained, [first]) == [False, True, False, True]
    assert ranked_too_high(trained, [second]) == [False, False, False, True]  # 1: 2.5 < 3; 2: 1.5 < 3; 3: 3.5 > 1.5
    assert ranked_too_high(trained, [first, second]) == [False, True, False, True]  # 1: 2.5 > (0.5 + 3) / 2


def test_the_gate_opens_where_the_trained_reward_ranks_higher() -> None:
    check_ranks()
    assert ranked_too_high([5.0, 5.0], [[0.0, 0.0]]) == [False, False]


def gate_of(at: torch.Tensor, processes: Any) -> tuple[torch.Tensor | None, Tally]:
    tally = Tally()
    one = Scoring(Objective({"redness": redness}), "none", processes, Objective({"blueness": blueness}))
    return one.score(tally, at, ["a"] * len(at)).gate, tally


class Second(Processes):
    """The second of two processes, the first of which has scored the same."""

    rank, world_size = 1, 2

    def __init__(self, of_first: list[list[float]]) -> None:
        self.of_first = of_first

    def gather(self, value: Any) -> list[Any]:
        return [self.of_first, value]


def test_images_are_ranked_among_those_of_all_processes() -> None:
    at = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    whole, tally = gate_of(at, Processes(cpu=True))
    expected = ranked_too_high(redness(at).tolist(), [blueness(at).tolist()])
    assert whole is not None
    assert whole.tolist() == expected
    assert 0 < sum(expected) < 5
    assert tally.reported == [(5, {"kl_gate": pytest.approx(sum(expected) / 5)})]
    assert tally.queries == 5  # of the trained reward
    others = [redness(at[:2]).tolist(), blueness(at[:2]).tolist()]
    part, _ = gate_of(at[2:], Second(others))
    assert part is not None
    assert torch.equal(part, whole[2:])
    with pytest.raises(RecipeError, match=r"regularizers\.kl_gate: one image alone has no rank; score two or more"):
        gate_of(at[:1], Processes(cpu=True))


def check_gradient(tokenizer: Any) -> None:
    """Of a closed gate 0, of an open one that of all images, of a half-open one the mean of those that it lets through.

    By hand: predictions of both models on the inputs of the recorded calls, guidance's two batches of four in each.
    """
    one = trainer(tokenizer, gated=True)
    pipe, inputs = one.sampler.pipe, list[Any]()
    assert one.sampler.steps == 2  # counted before the calls are
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    (batch,) = one.batches.draw(0)
    gate = torch.tensor([1.0, 0.0, 0.0, 1.0])

    def score(images: torch.Tensor, prompts: Any, **more: Any) -> Any:
        return type(scores := one.objective(images, prompts))(scores.total, scores.per_reward, gate)

    (loss,) = one.learner.losses(batch, one.sampler, score)
    hook.remove()
    assert len(inputs) == 2  # the base model's own calls pass no hook
    expected = []
    for args, kwargs in inputs:
        with torch.no_grad(), adapters_off(pipe):
            base = pipe.unet(*args, **kwargs)[0]
        of_rows = (pipe.unet(*args, **kwargs)[0] - base).square().mean((1, 2, 3))
        expected.append(torch.stack([of_rows[0], of_rows[3], of_rows[4], of_rows[7]]).sum() / 8)
    assert loss.divergence is not None
    assert loss.divergence.item() > 0
    torch.testing.assert_close(loss.divergence, torch.stack(expected).mean(), rtol=1e-4, atol=1e-9)


def test_only_images_that_the_gate_lets_through_count(tokenizer: Any) -> None:
    check_gradient(tokenizer)


def test_a_gate_that_lets_the_others_through_is_seen(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.learners.direct.gated_mean", lambda squares, gate: gated_mean(squares, 1 - gate))
    with pytest.raises(AssertionError):
        check_gradient(tokenizer)


def test_a_rollout_keeps_a_number_for_each_row_of_a_recorded_call(tokenizer: Any) -> None:
    one = trainer(tokenizer, gated=True)
    (batch,) = one.batches.draw(0)
    plan, generator = DraftK(k=2).plan(2, Random(0)), list(batch.generators)
    (rollout,) = one.sampler.passes(batch.prompts, plan=plan, generator=generator)
    assert [tuple(squares.shape) for squares in rollout.squares] == [(2 * len(batch.prompts),)] * 2
    assert rollout.divergence is not None
    torch.testing.assert_close(torch.stack(rollout.squares).mean(), rollout.divergence)


def test_rows_of_unknown_images_are_refused() -> None:
    for squares in (torch.ones(3, 2), torch.ones(())):
        with pytest.raises(DraftError, match=r"regularizers\.kl_gate: the denoiser is called with .* for 2 images"):
            gated_mean(squares, torch.ones(2))


@pytest.mark.parametrize(
    "make",
    [lambda: DirectLearner(DraftLV(resamples=1)), lambda: TargetLearner(Target()), lambda: grpo(GRPO(inner_epochs=1))],
    ids=["draft-lv", "target", "grpo"],
)
def test_every_learner_that_says_so_heeds_the_gate(
    tokenizer: Any, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = next(iter(trainer(tokenizer, make(), images_per_prompt=2))).penalties["kl"]
    reports = []
    for lets_through in (False, True):
        monkeypatch.setattr(scoring, "ranked_too_high", lambda trained, others, it=lets_through: [it] * len(trained))
        reports.append(next(iter(trainer(tokenizer, make(), gated=True, images_per_prompt=2))))
    assert [report.learner["kl_gate"] for report in reports] == [0.0, 1.0]
    assert reports[0].penalties["kl"] == 0.0
    assert reports[1].penalties["kl"] == pytest.approx(plain, rel=1e-5)
    assert plain > 0


# The moving anchor


def check_average(tokenizer: Any) -> None:
    one = trainer(tokenizer, ema=0.8)
    expected = [weight.detach().clone() for weight in one.parameters]
    assert one.regularizers.anchor is not None
    for _ in range(2):
        one.train_step()
        expected = [0.8 * mean + 0.2 * weight.detach() for mean, weight in zip(expected, one.parameters, strict=True)]
    torch.testing.assert_close(one.regularizers.anchor.average, expected)


def test_the_anchor_is_the_exponential_average_of_the_weights_after_each_update(tokenizer: Any) -> None:
    check_average(tokenizer)


def test_an_average_with_its_factors_swapped_is_seen(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MovingAverage
    monkeypatch.setattr(module, "MovingAverage", lambda weights, decay: real(weights, 1 - decay))
    with pytest.raises(AssertionError):
        check_average(tokenizer)


def test_the_distance_and_its_gradient_are_those_from_a_second_model_with_the_average(tokenizer: Any) -> None:
    one, second = trainer(tokenizer, ema=0.5), trainer(tokenizer)
    anchor = one.regularizers.anchor
    assert anchor is not None
    with torch.no_grad():
        for weight, other in zip(one.parameters, second.parameters, strict=True):
            other.copy_(weight)  # the average, as it is at first
            weight += 0.03
    (batch,) = one.batches.draw(0)
    assert one.sampler.steps == 2
    inputs: list[Any] = []
    hook = one.sampler.pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    before = [weight.data_ptr() for weight in one.parameters]
    rollout = one.sampler(batch.prompts, plan=DraftK(k=1).plan(2, Random(0)), generator=batch.generators)
    hook.remove()
    assert [weight.data_ptr() for weight in one.parameters] == before
    args, kwargs = inputs[1]
    with torch.no_grad():
        expected = second.sampler.pipe.unet(*args, **kwargs)[0]
    distance = (one.sampler.pipe.unet(*args, **kwargs)[0] - expected).square().mean()
    assert rollout.divergence is not None
    assert distance.item() > 0
    torch.testing.assert_close(rollout.divergence, distance, rtol=1e-4, atol=1e-9)
    found = torch.autograd.grad(rollout.divergence, one.parameters)
    torch.testing.assert_close(found, torch.autograd.grad(distance, one.parameters), rtol=1e-3, atol=1e-7)


def test_a_resumed_training_is_the_uninterrupted_one_in_every_bit(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = partial(trainer, tokenizer, ema=0.5, gated=True)
    whole = make()
    reports = list(whole)
    second = taken_up(make, tmp_path)
    assert [report.loss for report in second] == [report.loss for report in reports[2:]]
    assert torch.equal(flat(lora_state(second.sampler.pipe)), flat(lora_state(whole.sampler.pipe)))
    with pytest.raises(CheckpointError, match="it holds no moving average of these weights; resume with the recipe"):
        make().restore(trainer(tokenizer).state())
    monkeypatch.setattr(MovingAverage, "restore", lambda self, state: None)  # an anchor that starts anew
    assert [report.loss for report in taken_up(make, tmp_path)] != [report.loss for report in reports[2:]]


# What is refused, and what it costs


def test_what_a_trainer_cannot_heed_is_refused(tokenizer: Any) -> None:
    for learner, what in (
        (PreferenceLearner(DPO()), {"ema": 0.9}),
        (WeightedRegression(Importance()), {"gated": True}),
    ):
        field = (
            "kl_anchor: the method compares with the base" if "ema" in what else "kl_gate: the method does not weigh"
        )
        with pytest.raises(DraftError, match=rf"regularizers\.{field}"):
            trainer(tokenizer, learner, **what)
    with pytest.raises(RecipeError, match=r"regularizers\.kl_gate: one image alone has no rank"):
        trainer(tokenizer, gated=True, batch_size=1)
    with pytest.raises(DraftError, match=r"regularizers\.kl_gate: it names blueness, and the gate has other metrics"):
        Trainer(
            trainer(tokenizer).sampler,
            Objective({"redness": redness}),
            prompts=["a"],
            device="cpu",
            regularizers=RegularizerSettings(kl=1.0, kl_gate=("blueness",)),
        )


def test_the_forecast_asks_the_metrics_of_the_gate_too(tokenizer: Any) -> None:
    one, asked = trainer(tokenizer, gated=True), []
    assert one.scoring.gate is not None
    one.scoring.gate.rewards["blueness"].register_forward_hook(lambda *_: asked.append(1))
    PlannedWork(one, one.learner.method).times()
    assert asked


RECIPE: dict[str, Any] = {
    "model": {"pretrained": "emoji", "num_inference_steps": 4},
    "prompts": ["a cat", "a dog"],
    "rewards": [{"kind": "jpeg"}],
    "metrics": [{"kind": "jpeg-size"}, {"kind": "emoji-clip"}],
    "method": {"kind": "draft-k"},
    "regularizers": {"kl": 1.0, "kl_gate": ["emoji-clip"]},
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"regularizers": {"kl_gate": ["emoji-clip"]}}, "regularizers.kl_gate: without a weight of kl it would have"),
        ({"regularizers": {"kl_anchor": {}}}, "regularizers.kl_anchor: without a weight of kl it would have no effect"),
        ({"regularizers": {"kl": 1.0, "kl_anchor": {"ema": 1.0}}}, "kl_anchor.ema.*less than 1"),
        ({"metrics": []}, "regularizers.kl_gate: metrics hold no 'emoji-clip', and it must be one; add it to metrics"),
        ({"metrics": [{"kind": "jpeg-size"}]}, "hold no 'emoji-clip', and it must be one; name one of jpeg-size"),
        ({"metrics": [{"kind": "emoji-clip"}] * 2}, "metrics hold 2 'emoji-clip', and it must be one"),
        ({"regularizers": {"kl": 1.0, "kl_gate": ["emoji-clip"] * 2}}, "kl_gate: it names 'emoji-clip' twice"),
        ({"method": {"kind": "importance"}}, "regularizers.kl_gate: method 'importance' does not weigh how far each"),
        (
            {
                "metrics": [{"kind": "asked-colour"}],
                "regularizers": {"kl": 1.0, "kl_gate": ["asked-colour"]},
                "evaluation": {"prompts": ["a red car"]},
            },
            "prompts: reward 'asked-colour' reads column 'colour', and the list has none beside the prompts",
        ),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({**RECIPE, **changed})
    assert load_recipe(RECIPE).regularizers.kl_gate == ("emoji-clip",)
