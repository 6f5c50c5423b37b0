"""The trainer: it climbs, it resumes in every bit, and it stops where numbers end."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK, DraftLV, Objective, PrefixReuse, Trainer
from draft_core.adapters.lora import adapters_off, lora_state, squared_norm, trainable
from draft_core.errors import CheckpointError, DraftError, RewardError
from draft_core.learners.direct import DirectLearner
from draft_core.rewards.normalization import RunningScale
from draft_core.training.checkpoints import FORMAT, load_checkpoint, read_checkpoint, save_checkpoint, write_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.runs import taken_up
from tests.support.tiny import Nan, Redness, RednessConfig, byte_tokenizer, tiny_pipe, with_lora


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(
    tokenizer: Any,
    *,
    reward: Any = None,
    rank: int = 2,
    method: Any = None,
    learner: Any = None,
    cap: float | None = None,
    kl: float = 0.0,
    lora_norm: float = 0.0,
    **settings: Any,
) -> Trainer:
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer), rank=rank)
    return Trainer(
        DifferentiableSampler(
            pipe, num_inference_steps=2, guidance_scale=3.0, base_model=partial(adapters_off, pipe) if kl else None
        ),
        Objective({"redness": reward or Redness(RednessConfig())}, caps={} if cap is None else {"redness": cap}),
        learner or DirectLearner(method or DraftLV(resamples=1)),
        ["a", "b", "c"],
        TrainSettings(**{"steps": 4, "batch_size": 2, "learning_rate": 3e-2, **settings}),
        regularizers=RegularizerSettings(kl=kl, lora_norm=lora_norm),
        device="cpu",
    )


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in lora_state(trainer.sampler.pipe).values()])


def test_the_reward_rises(tokenizer: Any) -> None:
    one = trainer(tokenizer, steps=25)
    plan = one.learner.method.plan(2, Random(0))

    def reward() -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        with torch.no_grad():
            rollout = one.sampler(["a", "b"], plan=plan, generator=generators)
            return float(one.objective(rollout.images, rollout.prompts).total.mean())

    before = reward()
    reports = list(one)
    assert [report.update for report in reports] == list(range(1, 26))
    assert reward() > before + 0.01
    assert all(report.loss == -report.reward == -report.scores["redness"] for report in reports)


def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer)
    reports = list(whole)

    second = taken_up(lambda: trainer(tokenizer), tmp_path)
    resumed = list(second)

    assert [report.update for report in resumed] == [3, 4]
    assert [report.reward for report in resumed] == [report.reward for report in reports[2:]]
    assert torch.equal(weights(second), weights(whole))


def spied_gradients(one: Trainer) -> list[torch.Tensor]:
    """The gradient of every optimiser step that the trainer takes, flat."""
    taken: list[torch.Tensor] = []
    step = one.optimizer.step

    def spy() -> None:
        taken.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters]))
        step()

    one.optimizer.step = spy
    return taken


def test_accumulated_passes_are_one_large_batch(tokenizer: Any) -> None:
    """Gradients, not updates: Adam would hide a wrong factor."""
    settings = {"method": DraftLV(resamples=1), "max_grad_norm": 1e9}
    whole = trainer(tokenizer, batch_size=2, **settings)
    parts = trainer(tokenizer, batch_size=1, gradient_accumulation_steps=2, **settings)
    gradients = []
    for one in (whole, parts):
        taken = spied_gradients(one)
        next(iter(one))
        gradients.append(taken[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_passes_one_after_another_have_the_gradient_of_all_images_at_once(tokenizer: Any) -> None:
    one = trainer(tokenizer, method=DraftLV(resamples=2), max_grad_norm=1e9)
    (batch,) = one.batches.draw(0)
    rollout = one.sampler(
        batch.prompts,
        plan=one.learner.method.plan(2, Random(0)),
        renoising=one.learner.method.renoising(),
        generator=batch.generators,
    )
    loss = -one.objective(rollout.images, rollout.prompts).total.mean()
    expected = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, one.parameters)])
    together = trainer(tokenizer, method=DraftLV(resamples=2, batched=True), max_grad_norm=1e9)
    for each in (one, together):
        taken = spied_gradients(each)
        next(iter(each))
        torch.testing.assert_close(taken[0], expected, rtol=1e-4, atol=1e-9)


def test_prefix_reuse_takes_a_step_after_each_pass_of_one_rollout(tokenizer: Any) -> None:
    one = trainer(tokenizer, method=PrefixReuse(updates=3), steps=2)
    taken = spied_gradients(one)
    reports = list(one)
    assert [report.optimizer_steps for report in reports] == [3, 3]
    assert len(taken) == 6
    assert not torch.equal(taken[0], taken[1])


def test_the_first_step_of_a_reused_prefix_is_draft_1(tokenizer: Any) -> None:
    gradients = []
    for method in (PrefixReuse(updates=3), DraftK(k=1)):
        one = trainer(tokenizer, method=method)
        taken = spied_gradients(one)
        next(iter(one))
        gradients.append(taken[0])
    assert torch.equal(*gradients)


def test_a_rollout_that_drifts_too_far_is_given_up(tokenizer: Any) -> None:
    far = trainer(tokenizer, method=PrefixReuse(updates=6, max_drift=1e-9))
    near = trainer(tokenizer, method=PrefixReuse(updates=6, max_drift=10.0))
    assert next(iter(far)).optimizer_steps == 2, "the samples, and the pass whose drift is found too large"
    assert next(iter(near)).optimizer_steps == 6


def test_a_capped_reward_gives_no_gradient_above_its_cap(tokenizer: Any) -> None:
    one = trainer(tokenizer, cap=-5.0)
    report = next(iter(one))
    assert report.grad_norm == 0.0
    assert report.reward == -5.0
    assert report.scores["redness"] > -5.0


def test_the_kl_term_is_the_squared_distance_from_the_base_model(tokenizer: Any) -> None:
    """By hand: both predictions on the input of the one recorded call, and the gradient through the tuned one alone."""
    one = trainer(tokenizer, kl=2.0, method=DraftK(k=1))
    pipe = one.sampler.pipe
    with torch.no_grad():
        for parameter in trainable(pipe):
            parameter += 0.05
    (batch,) = one.batches.draw(0)
    assert one.sampler.steps == 2
    inputs: list[Any] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    rollout = one.sampler(batch.prompts, plan=DraftK(k=1).plan(2, Random(0)), generator=batch.generators)
    hook.remove()
    args, kwargs = inputs[1]
    tuned = pipe.unet(*args, **kwargs)[0]
    with torch.no_grad(), adapters_off(pipe):
        base = pipe.unet(*args, **kwargs)[0]
    expected = (tuned - base).square().mean()
    assert rollout.divergence is not None
    torch.testing.assert_close(rollout.divergence, expected)
    found = torch.autograd.grad(rollout.divergence, one.parameters)
    torch.testing.assert_close(found, torch.autograd.grad(expected, one.parameters))


def test_the_norm_of_the_lora_is_that_of_what_it_adds(tokenizer: Any) -> None:
    pipe = trainer(tokenizer).sampler.pipe
    with torch.no_grad():
        for parameter in trainable(pipe):
            parameter += 0.05
    added = [
        module.get_delta_weight("default").square().sum()
        for module in pipe.unet.modules()
        if hasattr(module, "get_delta_weight")
    ]
    torch.testing.assert_close(squared_norm(pipe), torch.stack(added).sum(), rtol=1e-5, atol=0)


def test_regularisers_enter_the_loss_with_their_weight(tokenizer: Any) -> None:
    one = trainer(tokenizer, kl=0.5, lora_norm=2.0)
    with torch.no_grad():
        for parameter in trainable(one.sampler.pipe):
            parameter += 0.05
    norm = float(squared_norm(one.sampler.pipe).detach())
    report = next(iter(one))
    assert report.penalties["lora_norm"] == pytest.approx(norm)
    assert report.penalties["kl"] > 0
    expected = -report.reward + 0.5 * report.penalties["kl"] + 2.0 * norm
    assert report.loss == pytest.approx(expected)


def test_every_prompt_is_used_before_one_comes_again(tokenizer: Any) -> None:
    one = trainer(tokenizer)
    order = [prompt for update in range(6) for batch in one.batches.draw(update) for prompt in batch.prompts]
    assert [sorted(order[first : first + 3]) for first in (0, 3, 6, 9)] == [["a", "b", "c"]] * 4
    assert len({tuple(order[first : first + 3]) for first in (0, 3, 6, 9)}) > 1


def test_the_learning_rate_warms_up_from_above_zero(tokenizer: Any) -> None:
    rates = [report.learning_rate for report in trainer(tokenizer, warmup_steps=2, learning_rate=0.3)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_the_learning_rate_cools_down_to_above_zero(tokenizer: Any) -> None:
    one = trainer(tokenizer, warmup_steps=1, cooldown_steps=2, learning_rate=0.3)
    rates = [report.learning_rate for report in one]
    assert rates == pytest.approx([0.15, 0.3, 0.2, 0.1])
    assert one.train_step().learning_rate == pytest.approx(0.1)  # one more than was asked for


def test_an_update_with_a_nan_is_skipped_by_name_and_the_weights_stay(tokenizer: Any) -> None:
    one = trainer(tokenizer, reward=Nan(RednessConfig(), calls=[4]))  # two calls an update: the second one's second
    steps = iter(one)
    next(steps)
    before = weights(one)
    report = next(steps)
    (reason,), (batch,) = report.skipped, one.batches.draw(1)
    assert reason.startswith(f"reward 'redness' of the prompt '{min(batch.prompts)}' became nan")
    assert report.optimizer_steps == 0
    assert torch.equal(weights(one), before)
    assert next(steps).skipped == ()
    assert not torch.equal(weights(one), before)
    assert one.skipped == 1


def test_too_many_skipped_updates_end_the_run(tokenizer: Any) -> None:
    one = trainer(tokenizer, reward=Nan(RednessConfig(), calls=range(3, 99)), max_skipped=1)
    steps = iter(one)
    next(steps), next(steps)
    with pytest.raises(
        RewardError, match="update 3: 2 optimiser steps were skipped, the last one because reward 'redness'"
    ):
        next(steps)


def test_a_resumed_run_that_allows_fewer_skips_than_it_had_ends_at_the_next_one(tokenizer: Any, tmp_path: Path) -> None:
    one = trainer(tokenizer, reward=Nan(RednessConfig(), calls=range(1, 5)))
    next(iter(one)), next(iter(one))
    folder = save_checkpoint(one, tmp_path / "000002")
    later = trainer(tokenizer, reward=Nan(RednessConfig(), calls=[4]), max_skipped=1)
    load_checkpoint(later, folder)
    assert next(iter(later)).skipped == ()
    with pytest.raises(RewardError, match="update 4: 3 optimiser steps were skipped, the last one because reward 'red"):
        next(iter(later))


def test_each_reward_is_divided_by_its_running_scale(tokenizer: Any) -> None:
    one = trainer(tokenizer, normalize="scale", steps=2, max_grad_norm=1e9)
    taken = spied_gradients(one)
    list(one)
    plain = trainer(tokenizer, steps=2, max_grad_norm=1e9)
    untouched = spied_gradients(plain)
    list(plain)
    size = one.scoring.divisors["redness"]
    assert 0 < size < 1
    assert taken[0].norm() > untouched[0].norm(), "divided by a spread below 1"


def test_the_gradient_of_the_normalised_reward_has_length_one_in_the_image() -> None:
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    images = images * 1.0
    each = {"redness": Redness(RednessConfig(contrast=7.0))(images, ["a", "b"])}
    scale = RunningScale("gradient")
    scale.update(scale.measure(each, images))
    total = Objective({"redness": Redness(RednessConfig())}).total(each, scale.divisors)
    (gradient,) = torch.autograd.grad(total.sum(), images)
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_reward_without_a_gradient_in_the_images_is_named_where_gradients_are_measured(
    tokenizer: Any, requires_grad: bool
) -> None:
    def flat(images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), requires_grad=requires_grad)

    one = trainer(tokenizer, normalize="gradient")
    one.scoring.objective = Objective({"redness": Redness(RednessConfig()), "flat": flat})
    if requires_grad:
        assert "reward 'flat' is divided by nothing: it gives the images of a pass no gradient" in next(iter(one)).notes
    else:
        with pytest.raises(RewardError, match="reward 'flat': its scores carry no gradient"):
            next(iter(one))


def test_the_gradients_of_two_rewards_are_told_apart(tokenizer: Any) -> None:
    one = trainer(tokenizer)
    with torch.no_grad():
        for parameter in trainable(one.sampler.pipe):
            parameter += 0.05
    same, opposite = Redness(RednessConfig()), Redness(RednessConfig(contrast=2.0))
    one.scoring.objective = Objective({"same": same, "other": opposite}, {"other": -1.0})
    before = weights(one)
    norms, cosines = one.reward_gradients()
    assert norms["other"] == pytest.approx(2 * norms["same"], rel=1e-4)
    assert cosines == {"same ~ other": pytest.approx(-1.0, abs=1e-4)}
    assert torch.equal(weights(one), before)
    assert all(parameter.grad is None for parameter in one.parameters)


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.pt", "learner.pt", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_a_torn_checkpoint_is_refused(tokenizer: Any, tmp_path: Path, file: str, damage: str) -> None:
    one = trainer(tokenizer)
    next(iter(one))
    path = save_checkpoint(one, tmp_path / "000001") / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x80\x02" * 50)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(trainer(tokenizer), tmp_path / "000001")


def test_a_kill_while_a_checkpoint_is_replaced_leaves_no_half_of_one_under_its_name(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer(tokenizer)
    folder = save_checkpoint(one, tmp_path / "latest")
    delete = shutil.rmtree

    def killed(path: Path, **how: Any) -> None:
        if not path.exists():
            return
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    next(iter(one))
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(one, folder)
    assert read_checkpoint(folder).state["update"] == 1
    monkeypatch.setattr(shutil, "rmtree", delete)
    save_checkpoint(one, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_foreign_checkpoint_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    save_checkpoint(trainer(tokenizer), tmp_path / "000000")
    with pytest.raises(CheckpointError, match="made with seed 0, this run has seed 5"):
        load_checkpoint(trainer(tokenizer, seed=5), tmp_path / "000000")
    with pytest.raises(CheckpointError, match="its LoRA does not fit"):
        load_checkpoint(trainer(tokenizer, rank=3), tmp_path / "000000")


def test_every_file_of_a_checkpoint_is_flushed_while_it_is_open_for_writing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.write(descriptor, b"")  # an error, like a flush on Windows, unless it is open for writing
            flushed.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = save_checkpoint(trainer(tokenizer), tmp_path / "000000")
    assert sorted(flushed) == sorted(path.stat().st_ino for path in folder.iterdir())


@pytest.mark.parametrize("damage", ["another's", "half"])
def test_a_checkpoint_whose_optimizer_is_of_other_parameters_is_refused(
    tokenizer: Any, tmp_path: Path, damage: str
) -> None:
    own, other = trainer(tokenizer), trainer(tokenizer, rank=3)
    for one in (own, other):
        next(iter(one))
    moments = (other if damage == "another's" else own).optimizer.state_dict()
    if damage == "half":
        moments["state"][0].pop("exp_avg_sq")
    write_checkpoint(tmp_path / "000001", replace(own.state(), optimizers={"adapter": moments}))
    with pytest.raises(CheckpointError, match=r"does not fit .*exp_avg.* of the optimizer"):
        load_checkpoint(trainer(tokenizer), tmp_path / "000001")


def test_the_format_of_a_checkpoint_is_the_one_on_record(tokenizer: Any, tmp_path: Path) -> None:
    """Whoever changes what a checkpoint holds raises FORMAT, and writes it into checkpoint_format.json."""
    one = trainer(tokenizer)
    one.train_step()
    folder = save_checkpoint(one, tmp_path / "000001")
    read = read_checkpoint(folder)
    found = {
        "format": FORMAT,
        "files": sorted(path.name for path in folder.iterdir()),
        "learner": sorted(read.learner),
        "optimizers": sorted(read.optimizers),
        "moments": sorted(read.optimizers["adapter"]["state"][0]),
        "state": sorted(read.state),
    }
    assert found == json.loads(Path(__file__).with_name("checkpoint_format.json").read_text())


def test_a_checkpoint_of_an_older_format_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder = save_checkpoint(trainer(tokenizer), tmp_path / "000000")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": FORMAT - 1}))
    with pytest.raises(CheckpointError, match=rf"state\.json is not of format {FORMAT}"):
        load_checkpoint(trainer(tokenizer), folder)


def test_a_pipeline_without_a_lora_is_refused(tokenizer: Any) -> None:
    """Its 30,000 weights would all be trained, and could not be saved."""
    sampler = DifferentiableSampler(tiny_pipe(tokenizer=tokenizer), num_inference_steps=2)
    with pytest.raises(DraftError, match="StableDiffusionPipeline carries no LoRA to train; call `add_lora` first"):
        Trainer(sampler, Objective({}), DirectLearner(DraftK(k=1)), ["a cat"], TrainSettings())


def test_a_resumed_run_optimises_as_its_settings_say(tokenizer: Any, tmp_path: Path) -> None:
    """All of them: what the checkpoint brings is moments and step counts."""
    old = trainer(tokenizer, normalize="scale", warmup_steps=8)
    old.train_step()
    save_checkpoint(old, tmp_path / "000001")
    changed: dict[str, Any] = {
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "cooldown_steps": 1,
        "betas": (0.5, 0.7),
        "weight_decay": 0.3,
        "max_grad_norm": 1e-3,
        "normalize": "gradient",
    }
    new, fresh = (trainer(tokenizer, **changed) for _ in range(2))
    load_checkpoint(new, tmp_path / "000001")

    def options(trainer: Trainer) -> list[dict[str, Any]]:
        return [{**group, "params": len(group["params"])} for group in trainer.optimizer.param_groups]

    assert options(new) == options(fresh) != options(old)
    moments = [state["exp_avg"] for state in new.optimizer.state.values()]
    expected = [state["exp_avg"] for state in old.optimizer.state.values()]
    assert all(torch.equal(*pair) for pair in zip(moments, expected, strict=True))
    assert new.train_step().learning_rate == pytest.approx(1e-2 * 2 / 3), "of the new warm-up's second update"


def test_what_rewards_are_divided_by_is_not_taken_for_another_measure() -> None:
    spread, same, gradient = RunningScale("scale"), RunningScale("scale"), RunningScale("gradient")
    spread.update({"redness": 0.25})
    same.restore(spread.state())
    gradient.restore(spread.state())
    assert (same.divisors, gradient.divisors) == ({"redness": 0.25}, {})
