"""Objective and LoRA: what rewards must return, and what the trainer may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from draft_core import Objective, load_reward
from draft_core.adapters.files import load_lora, write_lora
from draft_core.adapters.lora import add_lora, lora_state, set_lora_state, trainable
from draft_core.errors import CheckpointError, DraftError, RecipeError, RewardError
from tests.support.tiny import PROMPTS, Redness, RednessConfig, byte_tokenizer, tiny_pipe


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_total_is_the_weighted_sum() -> None:
    objective = Objective(
        {"a": Redness(RednessConfig()), "b": Redness(RednessConfig(contrast=3.0))}, {"a": 2.0, "b": -1.0}
    )
    scores = objective(images(), ["x"] * 3)
    torch.testing.assert_close(scores.total, 2 * scores.per_reward["a"] - scores.per_reward["b"])
    torch.testing.assert_close(scores.per_reward["b"], 3 * scores.per_reward["a"])


def test_rewards_are_frozen_and_stay_in_eval_mode_under_a_parent() -> None:
    objective = Objective({"net": torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())})
    torch.nn.ModuleList([objective]).train()
    assert not any(module.training for module in objective.modules())
    assert not any(parameter.requires_grad for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (torch.zeros(3, 1), r"it returned torch.float32 of shape \(3, 1\) for 3 images"),
        (torch.zeros(()), r"it returned torch.float32 of shape \(\) for 3 images"),
        (torch.zeros(3, dtype=torch.float64), "it returned torch.float64"),
        ([0.0, 0.0, 0.0], "it returned list"),
    ],
)
def test_a_reward_that_breaks_the_contract_is_named(returned: Any, problem: str) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> Any:
            return returned

    with pytest.raises(RewardError, match=f"reward 'wrong': {problem}"):
        Objective({"wrong": Wrong()})(images(), ["x"] * 3)


def test_load_reward_takes_fields_and_refuses_unknown_ones(catalog: Any) -> None:
    reward = load_reward("redness", catalog=catalog, contrast=2.0)
    torch.testing.assert_close(reward(images(), [""] * 3), 2 * Redness(RednessConfig())(images(), []))
    with pytest.raises(RecipeError, match=r"unknown field 'contrst'; did you mean 'contrast'\?"):
        load_reward("redness", catalog=catalog, contrst=2.0)


def test_only_the_lora_is_trainable_and_it_starts_as_the_base_model() -> None:
    pipe, base = tiny_pipe(), tiny_pipe()
    add_lora(pipe, rank=2)
    assert all("lora" in name for name, parameter in pipe.unet.named_parameters() if parameter.requires_grad)
    assert sum(1 for _ in trainable(pipe)) == 2 * 4 * 8, "two factors, four projections, four blocks of two attentions"
    assert not any(parameter.requires_grad for parameter in pipe.vae.parameters())
    sample, context = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 16)
    assert torch.equal(pipe.unet(sample, 3, context).sample, base.unet(sample, 3, context).sample)


def test_the_lora_is_float32_over_a_half_precision_base() -> None:
    pipe = tiny_pipe(dtype=torch.bfloat16)
    add_lora(pipe, rank=2)
    assert {parameter.dtype for parameter in trainable(pipe)} == {torch.float32}


def test_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="no layer of UNet2DConditionModel can be adapted at to_nothing"):
        add_lora(tiny_pipe(), rank=2, targets=["to_nothing"])


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_plain_diffusers_loads_what_was_saved(alpha: float | None, tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "tokens"))
    add_lora(pipe, rank=2, alpha=alpha)
    with torch.no_grad():
        for parameter in trainable(pipe):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    call = {"num_inference_steps": 2, "output_type": "np"}

    def image(pipe: Any) -> torch.Tensor:
        return torch.from_numpy(pipe(PROMPTS, generator=torch.Generator().manual_seed(0), **call).images)

    tuned = image(pipe)
    write_lora(pipe, tmp_path / "lora")
    plain: StableDiffusionPipeline = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "tokens"))
    base = image(plain)
    plain.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(image(plain), tuned)
    assert (tuned - base).abs().max() > 0.01

    scaled = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "tokens"))
    load_lora(scaled, tmp_path / "lora", scale=0.0)
    torch.testing.assert_close(image(scaled), base)


def test_a_missing_or_damaged_lora_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no pytorch_lora_weights.safetensors; give the folder of a run"
    ):
        load_lora(tiny_pipe(), tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="it is not a safetensors file"):
        load_lora(tiny_pipe(), tmp_path)


def test_weights_of_another_lora_are_refused() -> None:
    pipe, other = tiny_pipe(), tiny_pipe()
    add_lora(pipe, rank=2)
    add_lora(other, rank=3)
    with pytest.raises(CheckpointError, match="its LoRA does not fit this model"):
        set_lora_state(pipe, lora_state(other))


def test_a_weight_or_cap_of_no_reward_is_refused() -> None:
    for what in ("weights", "caps"):
        with pytest.raises(DraftError, match=f"{what} of the objective: there is no reward 'rednes', of redness"):
            Objective({"redness": Redness(RednessConfig())}, **{what: {"rednes": 2.0}})
