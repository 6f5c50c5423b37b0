"""Gradients through float16 are those of float32; what is exactly zero, or computed otherwise than asked, is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, Objective, Trainer
from draft_core.adapters.lora import lora_state
from draft_core.errors import RecipeError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.learner import Batch, Loss, Score
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.runs.build import build
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.precision import LossScale, needs_loss_scale
from draft_core.training.settings import TrainSettings
from tests.support.thorough import THOROUGH
from tests.support.tiny import GOOD, Redness, RednessConfig, byte_tokenizer, tiny_pipe, with_lora

WEIGHTS = (1.0, 0.01, 0.001)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers warns of every cast to float16."""
    for name in ("diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)


def trainer(
    tokenizer: Any, dtype: torch.dtype, *, weight: float = 1.0, learner: Any = None, **settings: Any
) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer, dtype=dtype))
    return Trainer(
        DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=3.0),
        Objective({"redness": Redness(RednessConfig())}, {"redness": weight}),
        learner or DirectLearner(DraftK(k=1)),
        ["a", "b", "c"],
        TrainSettings(**{"steps": 4, "batch_size": 2, "learning_rate": 3e-2, "max_grad_norm": 1e9, **settings}),
        device="cpu",
    )


def stepped_with(one: Trainer) -> torch.Tensor:
    """The gradient of the first optimiser step, as the optimiser finds it."""
    taken: list[torch.Tensor] = []
    step = one.optimizer.step

    def spy() -> None:
        taken.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters]))
        step()

    one.optimizer.step = spy  # type: ignore[method-assign]
    one.train_step()
    return taken[0].double()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_float16_weights_have_the_gradient_of_float32_at_small_weights(tokenizer: Any, weight: float) -> None:
    expected = stepped_with(trainer(tokenizer, torch.float32, weight=weight))
    found = stepped_with(trainer(tokenizer, torch.float16, weight=weight))
    assert cosine(found, expected) > 0.98
    assert float(found.norm() / expected.norm()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("weight", WEIGHTS if THOROUGH else (1.0, 0.001))
def test_the_embedded_model_in_float16_has_the_gradient_of_float32(weight: float) -> None:
    catalog = load_catalog()

    def gradient(dtype: str) -> torch.Tensor:
        model = {"pretrained": "emoji", "num_inference_steps": 2, "guidance_scale": 4.0, "dtype": dtype}
        rewards = [{"kind": "jpeg", "weight": weight}]
        train = {"steps": 1, "batch_size": 1, "max_grad_norm": 1e9}
        given = {"model": model, "prompts": ["a red apple"], "method": {"kind": "draft-k"}, "rewards": rewards}
        recipe = load_recipe({**given, "train": train, "device": "cpu"}, catalog=catalog)
        return stepped_with(build(recipe, catalog=catalog))

    assert cosine(gradient("float16"), gradient("float32")) > 0.98


def test_a_loss_scale_changes_no_bit_where_nothing_is_in_float16(tokenizer: Any) -> None:
    one = trainer(tokenizer, torch.float32)
    assert one.parts["adapter"].loss_scale.value == 1.0
    scaled = trainer(tokenizer, torch.float32)
    scaled.parts["adapter"].loss_scale = LossScale(needed=True)
    assert torch.equal(stepped_with(one), stepped_with(scaled)), "a power of two"


def test_a_reward_in_float16_is_a_network_in_float16() -> None:
    assert needs_loss_scale("no", [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).half()])
    assert needs_loss_scale("fp16", [])
    assert not needs_loss_scale("bf16", [torch.nn.Linear(1, 1).bfloat16()])


def test_an_overflow_halves_the_scale_is_said_and_is_no_fault(tokenizer: Any) -> None:
    one = trainer(tokenizer, torch.float16, weight=1e6, max_skipped=0)
    before = lora_state(one.sampler.pipe)
    report = one.train_step()
    assert report.skipped[0].endswith("with the loss times 65536, which is now 32768")
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora_state(one.sampler.pipe).items())
    assert one.skipped == 0
    later = [one.train_step() for _ in range(16)]
    assert any(not report.skipped and report.grad_norm > 0 for report in later), "it trains once the scale fits"


def test_the_scale_is_doubled_after_as_many_steps_as_torchs() -> None:
    """Against torch's own scaler, step by step."""
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    own = LossScale(needed=True)
    own.patience = 3
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for factor in (1.0, 1.0, 1.0, float("inf"), 1.0, float("inf"), float("inf"), 1.0, 1.0, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if factor == 1.0:
            own.held()
        else:
            assert own.lowered()
        assert own.value == scaler.get_scale()


def test_a_resumed_run_goes_on_with_its_loss_scale(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer, torch.float16, weight=1e6, steps=6)
    reports = list(whole)
    first = trainer(tokenizer, torch.float16, weight=1e6, steps=6)
    first.train_step(), first.train_step()
    save_checkpoint(first, tmp_path / "000002")
    second = trainer(tokenizer, torch.float16, weight=1e6, steps=6)
    load_checkpoint(second, tmp_path / "000002")
    assert second.parts["adapter"].loss_scale.value == 2.0**14
    assert [report.skipped for report in second] == [report.skipped for report in reports[2:]]


@pytest.mark.parametrize(("weight", "reward"), [(0.0, {}), (1.0, {"contrast": 1e-40})], ids=["no weight", "too small"])
def test_a_gradient_of_exactly_zero_is_said(tokenizer: Any, weight: float, reward: Any) -> None:
    one = trainer(tokenizer, torch.float16, weight=weight)
    if reward:
        one.scoring.objective.rewards["redness"].contrast = reward["contrast"]
    notes = [report.notes for report in (one.train_step(), one.train_step())]
    assert all("the gradient of the adapter is exactly zero, so nothing is learnt" in said for (said,) in notes)
    assert trainer(tokenizer, torch.float32).train_step().notes == ()


class Both(DirectLearner):
    """The samples' loss, and one of a part of its own."""

    def __init__(self) -> None:
        super().__init__(DraftK(k=1))
        self.head = torch.nn.Linear(1, 1)

    def losses(self, batch: Batch, sampler: DifferentiableSampler, score: Score) -> Iterator[Loss]:
        yield from super().losses(batch, sampler, score)
        yield Loss(self.head(torch.ones(1, 1)).square().sum(), of="head")

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"head": self.head}


def test_each_part_has_a_scale_of_its_own(tokenizer: Any) -> None:
    one = trainer(tokenizer, torch.float16, weight=1e6, learner=Both())
    before = one.learner.modules()["head"].weight.detach().clone()
    one.train_step()
    assert {name: part.loss_scale.value for name, part in one.parts.items()} == {"adapter": 2.0**15, "head": 2.0**16}
    assert not torch.equal(one.learner.modules()["head"].weight, before)


def test_gradients_of_single_rewards_are_told_apart_in_float16(tokenizer: Any) -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        one = trainer(tokenizer, dtype)
        rewards = {
            "same": Redness(RednessConfig()),
            "other": Redness(RednessConfig()),
            "none": Redness(RednessConfig()),
        }
        one.scoring.objective = Objective(rewards, {"same": 0.01, "other": -0.01, "none": 0.0})
        found.append(one.reward_gradients())
    (exact, _), (norms, cosines) = found
    assert norms == pytest.approx(exact, rel=0.05)
    assert cosines["same ~ other"] == pytest.approx(-1, abs=1e-3)
    assert cosines["same ~ none"] != cosines["same ~ none"], "a gradient of zero has no direction"


# What the surroundings say


def test_variables_of_the_shell_change_no_gradient(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stepped_with(trainer(tokenizer, torch.float32))
    for name, value in {"GRADIENT_ACCUMULATION_STEPS": "4", "MIXED_PRECISION": "bf16", "USE_FSDP": "true"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert torch.equal(stepped_with(trainer(tokenizer, torch.float32)), expected)


def test_two_trainers_of_different_precision_live_in_one_program(tokenizer: Any) -> None:
    expected = stepped_with(trainer(tokenizer, torch.float32))
    mixed, plain = trainer(tokenizer, torch.float32, mixed_precision="bf16"), trainer(tokenizer, torch.float32)
    differing = stepped_with(mixed)
    assert torch.equal(stepped_with(plain), expected)
    assert not torch.equal(differing, expected)
    assert cosine(differing, expected) > 0.9


def test_what_the_device_cannot_do_is_refused_before_anything_is_loaded(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *args, **kwargs: pytest.fail("it was loaded"))
    recipe = load_recipe({**GOOD, "device": "cpu", "train": {"mixed_precision": "fp16"}}, catalog=catalog)
    with pytest.raises(RecipeError, match=r"train\.mixed_precision: fp16 needs a GPU; use bf16, or no"):
        build(recipe, catalog=catalog)


# Normalisation


def test_a_pass_of_one_image_has_no_spread_to_divide_by(
    tokenizer: Any, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"train\.normalize: scale divides by the spread .* one image has none"):
        trainer(tokenizer, torch.float32, batch_size=1, normalize="scale")
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *args, **kwargs: pytest.fail("it was loaded"))
    train = {"normalize": "scale", "batch_size": 1, "gradient_accumulation_steps": 4}
    recipe = load_recipe({**GOOD, "device": "cpu", "train": train}, catalog=catalog)
    with pytest.raises(RecipeError, match=r"raise train\.batch_size to 2 or more"):
        build(recipe, catalog=catalog)


@pytest.mark.parametrize(
    ("by", "reason"), [("scale", "its scores of a pass are all equal"), ("gradient", "gives the images .* no gradient")]
)
def test_a_reward_that_is_divided_by_nothing_is_named(tokenizer: Any, by: str, reason: str) -> None:
    one = trainer(tokenizer, torch.float32, normalize=by)
    one.scoring.objective.rewards["redness"].contrast = 0.0
    (said, _) = one.train_step().notes
    assert said.startswith("reward 'redness' is divided by nothing: ")
    assert re.search(reason, said)


def test_the_size_of_a_gradient_is_measured_beyond_what_float16_holds(tokenizer: Any) -> None:
    sizes = []
    for dtype in (torch.float32, torch.float16):
        one = trainer(tokenizer, dtype, normalize="gradient")
        one.scoring.objective.rewards["redness"].contrast = 1e-6
        one.train_step()
        sizes.append(one.scoring.divisors["redness"])
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)
