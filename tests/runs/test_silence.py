"""What a run says of numbers that mean nothing: images that are not finite, gradients of zero, a watch that is off."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, Objective, evaluate
from draft_core.errors import DraftError
from draft_core.learners.direct import DirectLearner
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import read_run
from draft_core.reporting.summary import summarize
from draft_core.runs import run as runs
from draft_core.runs.run import RunResult, run_recipe
from tests.support.runs import without_pages
from tests.support.tiny import GOOD, byte_tokenizer, tiny_pipe

RECIPE = {
    **GOOD,
    "model": {"pretrained": "tiny", "num_inference_steps": 2, "lora": {"rank": 2}},
    "method": {"kind": "draft-k"},
    "train": {"steps": 2, "batch_size": 2, "learning_rate": 3e-2},
    "evaluation": {"prompts": "tiny-heldout", "count": 2, "images_per_prompt": 2, "tolerance": 99, "scales": []},
    "device": "cpu",
}


@pytest.fixture
def train(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a recipe of two small updates and keeps what it said."""
    notes: list[str] = []
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)

    def run(*overrides: str) -> RunResult:
        recipe = load_recipe({**RECIPE, "output": str(tmp_path / "run")}, overrides, catalog=catalog)

        def progress(stage: str, done: int, total: int, note: str) -> None:
            if stage == "note":
                notes.append(note)

        return run_recipe(recipe, catalog, progress=progress)

    run.notes = notes  # type: ignore[attr-defined]
    return run


def overflowing(pipe: Any, *, tuned_only: bool = False) -> None:
    """The decoder gives NaN for the first image of a batch, where it is told after the LoRA has moved."""
    decode = pipe.vae.decoder.forward
    weights = [weight for name, weight in pipe.unet.named_parameters() if "lora_B" in name]

    def broken(latents: torch.Tensor, *args: Any) -> torch.Tensor:
        images = decode(latents, *args).clone()
        if not tuned_only or any(float(weight.detach().abs().max()) > 0 for weight in weights):
            images[0] = math.nan
        return images

    pipe.vae.decoder.forward = broken


def test_a_pipeline_whose_images_are_not_finite_is_named_at_the_first_evaluation(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = runs.build

    def broken(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        overflowing(trainer.sampler.pipe)
        monkeypatch.setattr(trainer, "train_step", lambda: pytest.fail("it trained"))
        return trainer

    monkeypatch.setattr(runs, "build", broken)
    with pytest.raises(DraftError) as caught:
        train()
    assert str(caught.value) == (
        "StableDiffusionPipeline: 1 of 2 images that it drew are not finite; look at its weights, its guidance and its "
        "other call arguments."
    )


def test_images_that_training_made_infinite_are_blamed_on_training(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build = runs.build

    def broken(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        overflowing(trainer.sampler.pipe, tuned_only=True)
        return trainer

    monkeypatch.setattr(runs, "build", broken)
    with pytest.raises(DraftError, match=r"not finite after update 2; .* lower train\.learning_rate"):
        train()
    assert any("skipped, the image of the prompt 'a " in note and "is not finite" in note for note in train.notes)


def test_a_decoder_that_overflows_in_float16_is_told_another_precision(tmp_path: Path) -> None:
    pipe = tiny_pipe(dtype=torch.float16, tokenizer=byte_tokenizer(tmp_path))
    overflowing(pipe)
    sampler = DifferentiableSampler(pipe, num_inference_steps=2)
    with pytest.raises(DraftError, match=r"use bfloat16 or float32 \(model\.dtype\): float16 ends at 65504"):
        evaluate(sampler, Objective({}), ["a cat"], [0], batch_size=1)


def test_a_weight_of_zero_is_said_at_every_update(train: Any) -> None:
    train("rewards.0.weight=0")
    said = [note for note in train.notes if "the gradient of the adapter is exactly zero" in note]
    assert [note.split(":")[0] for note in said] == ["update 1", "update 2"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["evaluation.count=1"], "one prompt gives no error of a mean"),
        (["evaluation.images_per_prompt=1"], "no score is held out and diversity is not measured"),
        ([], None),
    ],
)
def test_a_watch_against_collapse_that_is_off_is_said_before_the_first_update(
    train: Any, settings: list[str], why: str | None
) -> None:
    train(*settings)
    off = [note for note in train.notes if note.startswith("the watch against collapse is off")]
    assert (off == []) if why is None else (why in off[0] and train.notes.index(off[0]) == 0)


def test_evaluations_remember_what_rewards_were_divided_by_and_facts_the_caps(train: Any, tmp_path: Path) -> None:
    train("train.normalize=gradient", "rewards.0.cap=0.5")
    record = read_run(tmp_path / "run")
    assert record.before.divisors == {}
    assert set(record.last.divisors) == {"redness"}
    assert record.rule.caps == {"redness": 0.5}


def test_a_reward_of_weight_zero_is_held_out_and_watched(train: Any, tmp_path: Path) -> None:
    train("rewards=[{kind: redness}, {kind: redness, contrast: 2.0, weight: 0}]", "evaluation.images_per_prompt=1")
    record = read_run(tmp_path / "run")
    assert list(record.facts.rewards) == ["redness"]
    summary = summarize(record)
    assert {row.name: row.role for row in summary.rows if "redness" in row.name} == {
        "redness": "trained",
        "redness#2": "held out",
    }
    assert not [note for note in train.notes if note.startswith("the watch against collapse is off")]
    first, last = record.before, record.last
    fallen = dataclasses.replace(
        last,
        scores={"redness": [score + 9 for score in first.scores["redness"]], "redness#2": [-9.0, -9.1]},
    )
    assert "redness#2" in " ".join(record.rule.verdict(first, fallen).lost)


class Lambda(DirectLearner):
    """A learner whose state no file can hold."""

    def state_dict(self) -> Any:
        return {"rule": lambda: 0}


class Listed(DirectLearner):
    """A learner whose state is no mapping."""

    def state_dict(self) -> Any:
        return [1, 2]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Lambda, r"the method remembers what cannot be saved and read again \(.*lambda.*\); tell the method's author"),
        (Listed, r"method Listed: its state_dict\(\) returned list, not a mapping; tell the method's author"),
    ],
)
def test_a_method_that_cannot_be_saved_is_found_before_anything_is_drawn(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, sentence: str
) -> None:
    built = runs.build

    def build(*args: Any, **kwargs: Any) -> Any:
        trainer = built(*args, **kwargs)
        trainer.learner = kind(trainer.learner.method)
        return trainer

    monkeypatch.setattr(runs, "build", build)
    with pytest.raises(DraftError, match=sentence):
        train()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
