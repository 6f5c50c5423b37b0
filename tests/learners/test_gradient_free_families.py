"""Methods that need no gradient, on the embedded model and on two flow-matching families: KL, queries, and going on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, Objective, Trainer, load_catalog, load_pipeline
from draft_core.adapters.lora import adapters_off, add_lora, lora_state
from draft_core.registry.config import MethodConfig
from draft_core.registry.gradient_free import DDPO, DPO, GRPO, Importance
from draft_core.runs.build import build_learner
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.families import FAMILIES
from tests.support.thorough import some
from tests.support.tiny import Brightness, ClockConfig

METHODS: dict[str, MethodConfig] = {
    "ddpo": DDPO(minibatches=2, least=2),
    "grpo": GRPO(inner_epochs=2, steps=1),
    "importance": Importance(buffer=6, fits=2, levels=1, acceptance_rate=0.5),
    "dpo": DPO(fits=2, levels=2),
}
MODELS = ("emoji", "Stable Diffusion 3", "FLUX.1")
CASES = {f"{method} of {model}": (method, model) for method in METHODS for model in MODELS}
# The embedded model is the slowest: with the method that remembers most alone.
TRIED = some(CASES, "importance of emoji", *(name for name in CASES if not name.endswith("emoji")))


def made(model: str, method: MethodConfig) -> Trainer:
    call: dict[str, Any]
    catalog = load_catalog()
    if model == "emoji":
        if "emoji" not in catalog.pretrained:
            pytest.skip("draft-emoji is not installed")
        pipe, call = load_pipeline("emoji", catalog=catalog), {"guidance_scale": 4.0}
    else:
        family = next(family for family in FAMILIES if family.name.startswith(model))
        pipe, call = family.pipe(), family.call(torch.float32)
        call = {name: "" if name == "negative_prompt" else value for name, value in call.items()}  # of any batch
    pipe.set_progress_bar_config(disable=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=2)
    base = partial(adapters_off, pipe)
    return Trainer(
        DifferentiableSampler(pipe, num_inference_steps=3, noise=0.7, base_model=base, **call),
        Objective({"brightness": Brightness(ClockConfig())}),
        build_learner(method, catalog),
        ["a red apple", "a cat", "a house"],
        TrainSettings(steps=4, batch_size=4, images_per_prompt=2, learning_rate=1e-3),
        regularizers=RegularizerSettings(kl=0.1),
        device="cpu",
    )


@pytest.mark.parametrize(("method", "model"), TRIED.values(), ids=TRIED)
def test_a_resumed_training_is_the_uninterrupted_one_in_every_bit(method: str, model: str, tmp_path: Path) -> None:
    whole = made(model, METHODS[method])
    reports = [whole.train_step() for _ in range(3)]
    save_checkpoint(whole, tmp_path / "000003")
    reports.append(whole.train_step())
    assert [report.reward_queries for report in reports] == [4] * 4
    assert not any(report.skipped for report in reports)
    assert all(report.grad_norm > 0 for report in reports)
    assert reports[-1].penalties["kl"] > 0, "the model has left the base model, and the loss sees it"
    resumed = made(model, METHODS[method])
    load_checkpoint(resumed, tmp_path / "000003")
    report = resumed.train_step()
    assert (report.loss, report.reward, report.penalties) == (
        reports[-1].loss,
        reports[-1].reward,
        reports[-1].penalties,
    )
    mine, expected = lora_state(resumed.sampler.pipe), lora_state(whole.sampler.pipe)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
