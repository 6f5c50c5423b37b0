"""The forecast against the run: calls exactly, memory within a third, and nothing changed by asking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from draft_core.adapters.lora import lora_state
from draft_core.cost.evaluation import evaluation_cost
from draft_core.cost.forecast import Forecast, forecast, savings, work_of
from draft_core.cost.peak_memory import peak_memory
from draft_core.cost.probe import Times
from draft_core.errors import DraftError
from draft_core.evaluation.evaluate import evaluate, evaluation_sampler
from draft_core.recipe.load import load_recipe
from draft_core.recipe.resolve import resolve_evaluation
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import build
from draft_core.sampling.recomputing.slices import is_recorded
from draft_core.training.trainer import Trainer
from tests.support.thorough import some
from tests.support.tiny import GOOD, tiny_catalog

CASES: dict[str, dict[str, Any]] = {
    "draft": {"method": {"kind": "draft"}},
    "draft-1": {"method": {"kind": "draft-k", "k": 1}},
    "draft-k": {"method": {"kind": "draft-k", "k": 3}, "train": {"batch_size": 3}},
    "draft-lv": {"method": {"kind": "draft-lv", "resamples": 2}},
    "together": {"method": {"kind": "draft-lv", "resamples": 3, "batched": True}},
    "prefix-reuse": {"method": {"kind": "prefix-reuse", "updates": 3}},
    "refl": {"method": {"kind": "refl", "last": 3}},
    "drtune": {"method": {"kind": "drtune", "k": 2, "last": 2}},
    "flowbp-bridge": {"method": {"kind": "flowbp-bridge", "k": 3, "rescale": 0}},
    "leapalign": {"method": {"kind": "leapalign"}, "model": {"scheduler": {"name": "EulerDiscreteScheduler"}}},
    "worst_within": {"rewards": [{"kind": "redness", "worst_within": 0.01}], "method": {"kind": "draft-k"}},
    "accumulated": {"train": {"batch_size": 2, "gradient_accumulation_steps": 2}},
    "recomputed": {"method": {"kind": "draft"}, "model": {"gradient_checkpointing": True}},
    "sliced": {"model": {"decode": "sliced"}, "train": {"batch_size": 4}},
    "image by image": {
        "method": {"kind": "draft-k", "k": 2},
        "model": {"gradient_checkpointing": "sliced", "decode": "sliced", "num_inference_steps": 3},
    },
    "kl": {"regularizers": {"kl": 0.1}},
}
TRIED = some(CASES, "draft-k", "together", "prefix-reuse", "recomputed", "image by image", "kl")
NOISE = {"model": {"noise": 0.7, "num_inference_steps": 3}}
DRAWN = {"batch_size": 4, "images_per_prompt": 2}
BY_SCORES: dict[str, dict[str, Any]] = {
    "ddpo": {"method": {"kind": "ddpo", "minibatches": 2, "least": 2}, "train": DRAWN},
    "ddpo, kl": {
        "method": {"kind": "ddpo", "least": 2},
        "train": {"batch_size": 3},
        "regularizers": {"kl": 0.1},
    },
    "grpo, accumulated": {
        "method": {"kind": "grpo", "steps": 2, "inner_epochs": 2},
        "train": {**DRAWN, "gradient_accumulation_steps": 2},
    },
    "importance": {
        "method": {"kind": "importance", "buffer": 0, "acceptance_rate": 0.5, "fits": 2, "levels": 2},
        "train": {"batch_size": 4},
    },
    "importance, kl": {
        "method": {"kind": "importance", "buffer": 0, "acceptance_rate": 1.0, "fits": 1},
        "regularizers": {"kl": 0.1},
    },
    "raft": {"method": {"kind": "importance", "path_weights": False, "buffer": 0}, "train": {"batch_size": 4}},
    "weighted regression": {
        "method": {"kind": "importance", "path_weights": False, "weighting": "softmax", "buffer": 0}
    },
    "weighted regression, accumulated": {
        "method": {"kind": "importance", "path_weights": False, "weighting": "softmax", "buffer": 0, "fits": 1},
        "train": {"batch_size": 2, "gradient_accumulation_steps": 2},
    },
    "dpo": {"method": {"kind": "dpo", "fits": 2, "levels": 3}, "train": DRAWN},
    "dpo of the best of four": {"method": {"kind": "dpo"}, "train": {"batch_size": 8, "images_per_prompt": 4}},
    "dpo, accumulated": {
        "method": {"kind": "dpo", "fits": 2},
        "train": {**DRAWN, "gradient_accumulation_steps": 2},
        "regularizers": {"kl": 0.1},
    },
    "dpo of pairs in a file": {"method": {"kind": "dpo", "fits": 2, "levels": 2}, "train": {"batch_size": 3}},
    "dpo of pairs, accumulated": {
        "method": {"kind": "dpo"},
        "train": {"batch_size": 2, "gradient_accumulation_steps": 2},
    },
}
TRIED_BY_SCORES = some(BY_SCORES, "ddpo", "importance, kl", "dpo, accumulated", "dpo of pairs in a file")
TARGETS: dict[str, dict[str, Any]] = {
    "target": {"method": {"kind": "target", "fits": 3}, "train": {"batch_size": 3}},
    "target, kl, a short prefix": {"method": {"kind": "target", "prefix_steps": 2}, "regularizers": {"kl": 0.1}},
}
NO_PROMPTS = {name: value for name, value in GOOD.items() if name != "prompts"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return tiny_catalog(tmp_path_factory.mktemp("catalog"))


def recipe(**given: Any) -> dict[str, Any]:
    model = {**GOOD["model"], "num_inference_steps": 5, **given.pop("model", {})}
    good = NO_PROMPTS if given.get("method", {}).get("pairs") else GOOD
    return {**good, "model": model, "device": "cpu", "train": {"batch_size": 2}, **given}


def with_pairs(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with a file of pairs."""
    row = {"prompt": "a cat", "winner": "1.png", "loser": "2.png"}
    for name in (row["winner"], row["loser"]):
        Image.new("RGB", (16, 16)).save(folder / name)
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({**row, "prompt": prompt}) for prompt in ("a cat", "a dog", "a fox")))
    return {**case, "method": {**case["method"], "pairs": str(file)}}


def built(catalog: Catalog, case: Mapping[str, Any]) -> Trainer:
    return build(load_recipe(recipe(**case), catalog=catalog), catalog=catalog)


def begun(trainer: Trainer) -> None:
    """What a run does before its first update: looks at the call, and encodes an image to see its size."""
    trainer.sampler.traits  # noqa: B018
    trainer.learner.check(trainer.sampler)  # type: ignore[attr-defined]


def counted(trainer: Trainer) -> dict[str, int]:
    """What the networks are asked in one update, taken down by hooks."""
    counts = dict.fromkeys(("plain", "with_grad", "decoded", "scored", "encoded"), 0)
    pipe = trainer.sampler.pipe

    def denoised(module: Any, args: Any, output: Any) -> None:
        counts["with_grad" if is_recorded() else "plain"] += 1

    def added(name: str) -> Any:
        def add(module: Any, args: Any) -> None:
            counts[name] += len(args[0])

        return add

    handles = [
        pipe.unet.conv_in.register_forward_hook(denoised),  # inside, where empty calls do not come
        pipe.vae.decoder.register_forward_pre_hook(added("decoded")),
        pipe.vae.encoder.register_forward_pre_hook(added("encoded")),
        trainer.objective.register_forward_pre_hook(added("scored")),
    ]
    trainer.train_step()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("case", TRIED.values(), ids=TRIED)
def test_the_first_update_makes_exactly_these_calls_in_about_this_memory(
    catalog: Catalog, case: dict[str, Any]
) -> None:
    trainer = built(catalog, case)
    predicted = forecast(trainer)
    calls, memory, found = predicted.calls, predicted.memory, {}
    begun(trainer)
    real = peak_memory(lambda: found.update(counted(trainer)))  # it also makes the optimiser's state
    slices = 2 * trainer.batch_size if trainer.sampler.gradient_checkpointing == "sliced" else 1
    assert found["plain"] == calls.plain
    assert found["with_grad"] == calls.with_grad + calls.recomputed * slices
    assert found["scored"] == calls.scored
    assert found["decoded"] == calls.decoded * (1 if trainer.sampler.decode == "whole" else 2)
    assert memory.activations + memory.gradient + memory.optimizer == pytest.approx(real, rel=0.3)


@pytest.mark.parametrize("case", TARGETS.values(), ids=TARGETS)
def test_so_does_that_of_targets_of_fresh_samples(catalog: Catalog, case: dict[str, Any]) -> None:
    trainer = built(catalog, case)
    predicted = forecast(trainer)
    assert predicted.calls.encoded == 0
    compare(trainer, predicted)


def compare(trainer: Trainer, predicted: Forecast) -> None:
    """That an update makes exactly the calls that were predicted, in about the memory."""
    calls, memory, found = predicted.calls, predicted.memory, {}
    begun(trainer)
    real = peak_memory(lambda: found.update(counted(trainer)))
    assert found == {
        "plain": calls.plain,
        "with_grad": calls.with_grad,
        "decoded": calls.decoded,
        "scored": calls.scored,
        "encoded": calls.encoded,
    }
    assert memory.activations + memory.gradient + memory.optimizer == pytest.approx(real, rel=0.3)


@pytest.mark.parametrize("case", TRIED_BY_SCORES.values(), ids=TRIED_BY_SCORES)
def test_so_does_that_of_a_method_that_asks_for_scores_alone(
    catalog: Catalog, case: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    of_file = "pairs" in request.node.callspec.id
    case = with_pairs(case, tmp_path) if of_file else case
    trainer = built(catalog, {**NOISE, "rewards": [{"kind": "brightness"}], **case})  # without a gradient
    before = lora_state(trainer.sampler.pipe)
    predicted = forecast(trainer)
    assert all(torch.equal(before[name], tensor) for name, tensor in lora_state(trainer.sampler.pipe).items())
    compare(trainer, predicted)


@pytest.mark.usefixtures("few_savings")
@pytest.mark.parametrize("name", some(BY_SCORES, "grpo, accumulated", "dpo of pairs in a file"))
def test_a_smaller_batch_is_a_saving_where_the_images_of_a_pass_are_not_compared(
    catalog: Catalog, name: str, tmp_path: Path
) -> None:
    of_file = "pairs" in name
    case = with_pairs(BY_SCORES[name], tmp_path) if of_file else BY_SCORES[name]
    trainer = built(catalog, {**NOISE, "rewards": [{"kind": "brightness"}], **case})
    found = savings(trainer, forecast(trainer).memory)
    assert ("train.batch_size" in " ".join(found)) == of_file


@pytest.mark.parametrize("case", TRIED_BY_SCORES.values(), ids=TRIED_BY_SCORES)
def test_prompts_are_encoded_for_samples_and_outlines_and_not_for_replays(
    catalog: Catalog, case: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = with_pairs(case, tmp_path) if "pairs" in request.node.callspec.id else case
    trainer = built(catalog, {**NOISE, "rewards": [{"kind": "brightness"}], **case})
    begun(trainer)
    encoded: list[int] = []
    last = trainer.sampler.pipe.text_encoder.final_layer_norm  # inside, where replays do not come
    last.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    trainer.train_step()
    once = work_of(trainer).seconds(Times(1, 0.0, 0.0, 0.0, encoding=1.0)).encoding
    assert sum(encoded) / 2 == once, "with a prompt and without"


def test_remembered_samples_are_expected_among_those_that_are_fitted(catalog: Catalog) -> None:
    method = {"kind": "importance", "path_weights": False, "weighting": "softmax", "buffer": 64, "fits": 1}
    trainer = built(catalog, {"method": method, "rewards": [{"kind": "brightness"}]})
    predicted = forecast(trainer).calls
    trainer.train_step()
    assert counted(trainer)["with_grad"] == predicted.with_grad == 2 * 4  # levels; fresh ones, and as many remembered


def test_a_method_whose_calls_are_not_known_is_refused_by_name(catalog: Catalog) -> None:
    trainer = built(catalog, {})
    trainer.learner = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(DraftError, match=r"^method: what SimpleNamespace asks of the networks is not known before"):
        forecast(trainer)


def test_a_surrogate_is_refused_by_its_reward(catalog: Catalog) -> None:
    trainer = built(catalog, {"rewards": [{"kind": "redness", "surrogate": {}}]})
    with pytest.raises(DraftError, match=r"^reward 'redness': surrogate: what its warm-up, .* is not predicted; train"):
        forecast(trainer)


def test_the_weights_are_counted_by_component(catalog: Catalog) -> None:
    trainer = built(catalog, {})
    memory = forecast(trainer).memory
    unet = trainer.sampler.pipe.unet
    trained = sum(parameter.nbytes for parameter in unet.parameters() if parameter.requires_grad)
    assert memory.lora == memory.gradient == trained
    assert memory.optimizer == 2 * trained
    assert memory.weights["unet"] == sum(parameter.nbytes for parameter in unet.parameters()) - trained
    assert set(memory.weights) == {"unet", "vae", "text_encoder"}
    assert memory.total == sum(memory.weights.values()) + 4 * trained + memory.activations


def test_asking_changes_nothing(catalog: Catalog) -> None:
    asked, plain = (built(catalog, {"method": {"kind": "draft-k", "k": 2}}) for _ in range(2))
    forecast(asked)
    asked.train_step(), plain.train_step()
    for name, tensor in lora_state(plain.sampler.pipe).items():
        assert torch.equal(lora_state(asked.sampler.pipe)[name], tensor), name


@pytest.mark.usefixtures("few_savings")
def test_a_saving_holds_what_it_promises(catalog: Catalog) -> None:
    case = {"method": {"kind": "draft-k", "k": 2}, "model": {"num_inference_steps": 2}}
    trainer = built(catalog, case)
    found = savings(trainer, forecast(trainer).memory)
    assert "train.batch_size: 1, train.gradient_accumulation_steps: 2" in found
    lean = forecast(built(catalog, {**case, "model": {**case["model"], "gradient_checkpointing": True}})).memory
    assert found["model.gradient_checkpointing: true"] == pytest.approx(lean.total, rel=0.01)
    assert not trainer.sampler.gradient_checkpointing, "asking changes nothing"


def test_an_evaluation_makes_exactly_these_calls_and_the_steps_are_its_own(catalog: Catalog) -> None:
    evaluated = {"prompts": "tiny-heldout", "images_per_prompt": 3, "every": 4, "num_inference_steps": 7}
    loaded = load_recipe(recipe(evaluation=evaluated, train={"steps": 9}), catalog=catalog)
    trainer = build(loaded, catalog=catalog)
    settings, prompts = resolve_evaluation(loaded, catalog)
    sampler = evaluation_sampler(trainer.sampler, settings)
    before = lora_state(trainer.sampler.pipe)
    found = evaluation_cost(trainer, sampler, trainer.objective, settings, prompts=len(prompts))
    assert (found.images, found.calls, found.evaluations) == (2 * 3, sampler.steps, 1 + 3)
    assert found.seconds > 0
    calls: list[int] = []
    handle = trainer.sampler.pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    evaluate(sampler, trainer.objective, prompts[:1], [0])
    handle.remove()
    assert len(calls) == found.calls
    for name, tensor in lora_state(trainer.sampler.pipe).items():
        assert torch.equal(before[name], tensor), "asking changes nothing"


def test_the_seconds_add_up(catalog: Catalog) -> None:
    seconds = forecast(built(catalog, {})).seconds
    parts = (seconds.plain, seconds.with_grad, seconds.decoding_and_rewards, seconds.encoding)
    assert all(part > 0 for part in parts)
    assert seconds.total == pytest.approx(sum(parts))
