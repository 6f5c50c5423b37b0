"""The forecast against the run: calls exactly, memory within a third, and nothing changed by asking."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draft_core.adapters.lora import lora_state
from draft_core.cost.evaluation import evaluation_cost
from draft_core.cost.forecast import forecast, savings
from draft_core.cost.peak_memory import peak_memory
from draft_core.errors import DraftError
from draft_core.evaluation.evaluate import evaluate, evaluation_sampler
from draft_core.recipe.load import load_recipe
from draft_core.recipe.resolve import resolve_evaluation
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import build
from draft_core.training.trainer import Trainer
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
    "accumulated": {"train": {"batch_size": 2, "gradient_accumulation_steps": 2}},
    "recomputed": {"method": {"kind": "draft"}, "model": {"gradient_checkpointing": True}},
    "sliced": {"model": {"decode": "sliced"}, "train": {"batch_size": 4}},
    "kl": {"regularizers": {"kl": 0.1}},
}
NOISE = {"model": {"noise": 0.7}}
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
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return tiny_catalog(tmp_path_factory.mktemp("catalog"))


def recipe(**given: Any) -> dict[str, Any]:
    model = {**GOOD["model"], "num_inference_steps": 5, **given.pop("model", {})}
    return {**GOOD, "model": model, "device": "cpu", "train": {"batch_size": 2}, **given}


def built(catalog: Catalog, case: Mapping[str, Any]) -> Trainer:
    return build(load_recipe(recipe(**case), catalog=catalog), catalog=catalog)


def counted(trainer: Trainer) -> dict[str, int]:
    """What the networks are asked in one update, taken down by hooks."""
    counts = dict.fromkeys(("plain", "with_grad", "decoded", "scored"), 0)
    pipe = trainer.sampler.pipe

    def denoised(module: Any, args: Any, output: Any) -> None:
        counts["with_grad" if torch.is_grad_enabled() else "plain"] += 1

    def added(name: str) -> Any:
        def add(module: Any, args: Any) -> None:
            counts[name] += len(args[0])

        return add

    handles = [
        pipe.unet.conv_in.register_forward_hook(denoised),  # inside, where empty calls do not come
        pipe.vae.decoder.register_forward_pre_hook(added("decoded")),
        trainer.objective.register_forward_pre_hook(added("scored")),
    ]
    trainer.train_step()
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_first_update_makes_exactly_these_calls_in_about_this_memory(
    catalog: Catalog, case: dict[str, Any]
) -> None:
    trainer = built(catalog, case)
    predicted = forecast(trainer)
    calls, memory, found = predicted.calls, predicted.memory, {}
    real = peak_memory(lambda: found.update(counted(trainer)))  # it also makes the optimiser's state
    assert found["plain"] == calls.plain
    assert found["with_grad"] == calls.with_grad + calls.recomputed
    assert found["scored"] == calls.scored
    assert found["decoded"] == calls.decoded * (1 if trainer.sampler.decode == "whole" else 2)
    assert memory.activations + memory.gradient + memory.optimizer == pytest.approx(real, rel=0.3)


@pytest.mark.parametrize("case", BY_SCORES.values(), ids=BY_SCORES)
def test_so_does_that_of_a_method_that_asks_for_scores_alone(catalog: Catalog, case: dict[str, Any]) -> None:
    trainer = built(catalog, {**NOISE, "rewards": [{"kind": "brightness"}], **case})  # without a gradient
    before = lora_state(trainer.sampler.pipe)
    predicted = forecast(trainer)
    assert all(torch.equal(before[name], tensor) for name, tensor in lora_state(trainer.sampler.pipe).items())
    calls, memory, found = predicted.calls, predicted.memory, {}
    real = peak_memory(lambda: found.update(counted(trainer)))
    assert found == {
        "plain": calls.plain,
        "with_grad": calls.with_grad,
        "decoded": calls.decoded,
        "scored": calls.scored,
    }
    assert memory.activations + memory.gradient + memory.optimizer == pytest.approx(real, rel=0.3)
    assert "train.batch_size" not in " ".join(savings(trainer, memory)), "the images of a pass are compared"


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


def test_a_saving_holds_what_it_promises(catalog: Catalog) -> None:
    case = {"method": {"kind": "draft-k", "k": 2}, "train": {"batch_size": 2}}
    trainer = built(catalog, case)
    found = savings(trainer, forecast(trainer).memory)
    assert "train.batch_size: 1, train.gradient_accumulation_steps: 2" in found
    lean = forecast(built(catalog, {**case, "model": {"gradient_checkpointing": True}})).memory
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
