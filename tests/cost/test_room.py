"""An update that cannot fit is refused in seconds, before anything is drawn or deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core.adapters.lora import lora_state
from draft_core.cost import room
from draft_core.cost.forecast import forecast, further_bytes, most_bytes
from draft_core.cost.peak_memory import peak_memory
from draft_core.cost.room import free_memory, require_room
from draft_core.errors import DraftError
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import build
from draft_core.runs.run import run_recipe
from draft_core.training.trainer import Trainer
from tests.support.tiny import GOOD

CPU = torch.device("cpu")
METHODS: dict[str, dict[str, Any]] = {
    "all steps": {"kind": "draft"},
    "the last step": {"kind": "draft-k"},
    "batched copies": {"kind": "draft-lv", "resamples": 3, "batched": True},
    "own pairs": {"kind": "dpo", "levels": 3},
}


def recipe(catalog: Catalog, output: Path, **given: Any) -> Any:
    return load_recipe({**GOOD, "device": "cpu", "output": str(output), **given}, catalog=catalog)


def built(catalog: Catalog, output: Path, **given: Any) -> Trainer:
    return build(recipe(catalog, output, **given), catalog=catalog)


def test_a_batch_that_cannot_fit_is_refused_before_the_folder_is_touched(catalog: Catalog, tmp_path: Path) -> None:
    given = recipe(catalog, tmp_path / "run", train={"batch_size": 100_000})
    drawn: list[str] = []
    with pytest.raises(DraftError) as caught:
        run_recipe(given, catalog, progress=lambda stage, *_: drawn.append(stage))
    sentence = str(caught.value)
    assert sentence.startswith("train.batch_size 100000: an update takes about ")
    assert " GB are free on cpu; halve it and double train.gradient_accumulation_steps" in sentence
    assert set(drawn) == {"load"}
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_bound_is_above_what_is_predicted_and_both_above_a_third_less_than_it_takes(
    catalog: Catalog, tmp_path: Path, method: dict[str, Any]
) -> None:
    images = {"batch_size": 4, "images_per_prompt": 2} if method["kind"] == "dpo" else {"batch_size": 3}
    trainer = built(catalog, tmp_path, method=method, train=images)
    bound, predicted = most_bytes(trainer), further_bytes(trainer)
    real = peak_memory(trainer.train_step)
    assert bound >= 0.95 * predicted, "the rewards of this catalog take next to nothing"
    assert predicted == pytest.approx(real, rel=0.3)


def test_what_fits_is_not_spoken_of_what_hardly_fits_is_and_asking_changes_nothing(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = (built(catalog, tmp_path, train={"batch_size": 2}) for _ in range(2))
    needed = further_bytes(plain)
    reward = asked.objective.rewards["redness"]
    monkeypatch.setattr(reward, "forward", lambda *_: pytest.fail("a reward was asked"))
    monkeypatch.setattr(room, "free_memory", lambda device: needed * 10)
    assert require_room(asked) is None
    monkeypatch.undo()
    for free, fits in ((needed * 4, True), (needed + 1, True), (needed * 10 // 11, False)):
        monkeypatch.setattr(room, "free_memory", lambda device, free=free: free)
        said = require_room(asked)
        assert (said is None) if fits else (said is not None and "it may not fit, `draft cost` says" in said)
    monkeypatch.setattr(room, "free_memory", lambda device: needed * 2 // 3)
    with pytest.raises(DraftError, match=r"train\.batch_size 2: an update takes about 0\.0 GB"):
        require_room(asked)
    asked.train_step(), plain.train_step()
    for name, tensor in lora_state(plain.sampler.pipe).items():
        assert torch.equal(lora_state(asked.sampler.pipe)[name], tensor), name


def test_the_free_memory_is_that_of_a_limit_that_leaves_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free < 2**50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    half = free_memory(CPU)
    assert half == pytest.approx(free / 2, rel=0.5)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert list(room._left_by_control_group(tmp_path)) == [2_000_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(room._left_by_control_group(tmp_path)) == []


def test_the_forecast_and_the_check_predict_the_same(catalog: Catalog, tmp_path: Path) -> None:
    trainer = built(catalog, tmp_path, train={"batch_size": 2})
    memory = forecast(trainer).memory
    assert further_bytes(trainer) == memory.gradient + memory.optimizer + memory.activations
