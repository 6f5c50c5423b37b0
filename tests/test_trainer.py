"""The trainer: it climbs, it resumes in every bit, and it stops where numbers end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Nan, Redness, RednessConfig, byte_tokenizer, tiny_pipe

from draft_core import DifferentiableSampler, DraftLV, Objective, Trainer
from draft_core.errors import CheckpointError, RewardError
from draft_core.lora import add_lora, lora_state
from draft_core.recipe import TrainConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def trainer(tokenizer: Any, *, reward: Any = None, rank: int = 2, **settings: Any) -> Trainer:
    pipe = tiny_pipe(tokenizer=tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=rank)
    return Trainer(
        DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=3.0),
        Objective({"redness": reward or Redness(RednessConfig())}),
        DraftLV(resamples=1),
        ["a", "b", "c"],
        device="cpu",
        **TrainConfig(**{"steps": 4, "batch_size": 2, "learning_rate": 3e-2, **settings}).model_dump(),
    )


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in lora_state(trainer.sampler.pipe).values()])


def test_the_reward_rises(tokenizer: Any) -> None:
    one = trainer(tokenizer, steps=25)
    prompts, generator, plan = one._draw(0)
    state = generator.get_state()

    def reward() -> float:
        generator.set_state(state)
        with torch.no_grad():
            return float(
                one.objective(one.sampler(prompts, plan=plan, generator=generator).images, prompts * 2).total.mean()
            )

    before = reward()
    reports = list(one)
    assert [report.update for report in reports] == list(range(1, 26))
    assert reward() > before + 0.01
    assert all(report.loss == -report.reward == -report.scores["redness"] for report in reports)


def test_a_resumed_run_is_the_uninterrupted_one_in_every_bit(tokenizer: Any, tmp_path: Path) -> None:
    whole = trainer(tokenizer)
    reports = list(whole)

    first = trainer(tokenizer)
    steps = iter(first)
    next(steps), next(steps)
    first.save_checkpoint(tmp_path / "000002")
    second = trainer(tokenizer)
    second.load_checkpoint(tmp_path / "000002")
    resumed = list(second)

    assert [report.update for report in resumed] == [3, 4]
    assert [report.reward for report in resumed] == [report.reward for report in reports[2:]]
    assert torch.equal(weights(second), weights(whole))


def test_accumulated_passes_are_one_large_batch(tokenizer: Any) -> None:
    """Gradients, not updates: Adam would hide a wrong factor."""
    whole = trainer(tokenizer, batch_size=2, max_grad_norm=1e9)
    parts = trainer(tokenizer, batch_size=1, gradient_accumulation_steps=2, max_grad_norm=1e9)
    drawn = whole._draw(0)
    noise = torch.randn(2, 4, 8, 8, generator=drawn[1])
    for one, batches in ((whole, [([0, 1])]), (parts, [[0], [1]])):
        passes = iter(batches)

        def draw(micro: int, one: Trainer = one, passes: Any = passes) -> Any:
            places = next(passes)
            one.sampler.call_kwargs["latents"] = noise[places]
            plan = drawn[2].__class__(2, frozenset({1}))
            return [drawn[0][place] for place in places], torch.Generator().manual_seed(0), plan

        one._draw = draw  # type: ignore[method-assign]
    norms = [next(iter(one)).grad_norm for one in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_every_prompt_is_used_before_one_comes_again(tokenizer: Any) -> None:
    one = trainer(tokenizer)
    order = [one._prompt(index) for index in range(12)]
    assert [sorted(order[first : first + 3]) for first in (0, 3, 6, 9)] == [["a", "b", "c"]] * 4
    assert len({tuple(order[first : first + 3]) for first in (0, 3, 6, 9)}) > 1


def test_the_learning_rate_warms_up_from_above_zero(tokenizer: Any) -> None:
    rates = [report.learning_rate for report in trainer(tokenizer, warmup_steps=2, learning_rate=0.3)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])


def test_a_reward_that_turns_nan_stops_the_run_and_leaves_the_weights(tokenizer: Any) -> None:
    one = trainer(tokenizer, reward=Nan(RednessConfig()))
    steps = iter(one)
    next(steps), next(steps)
    before = weights(one)
    with pytest.raises(RewardError, match="update 3: reward 'redness' and the gradient became non-finite"):
        next(steps)
    assert torch.equal(weights(one), before)
    assert one.done == 2


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_a_torn_checkpoint_is_refused(tokenizer: Any, tmp_path: Path, file: str, damage: str) -> None:
    one = trainer(tokenizer)
    next(iter(one))
    path = one.save_checkpoint(tmp_path / "000001") / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\x80\x02" * 50)
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer(tokenizer).load_checkpoint(tmp_path / "000001")


def test_a_foreign_checkpoint_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    trainer(tokenizer).save_checkpoint(tmp_path / "000000")
    with pytest.raises(CheckpointError, match="made with seed 0, this run has seed 5"):
        trainer(tokenizer, seed=5).load_checkpoint(tmp_path / "000000")
    with pytest.raises(CheckpointError, match="its LoRA does not fit"):
        trainer(tokenizer, rank=3).load_checkpoint(tmp_path / "000000")
