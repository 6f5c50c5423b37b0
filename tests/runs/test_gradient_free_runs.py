"""Whole runs on a reward without gradient: going on after a stop, flow models, the page, evaluations without noise."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.errors import Interrupted, SamplerError
from draft_core.recipe.load import load_recipe
from draft_core.reporting.comparison import write_comparison
from draft_core.reporting.run_record import read_run
from draft_core.runs.run import run_recipe
from tests.support.families import FAMILIES
from tests.support.runs import FOUR_UPDATES, SMALL_SURROGATE, without_pages
from tests.support.thorough import in_full, some

REWARDS = [{"kind": "brightness"}]
METHODS: dict[str, dict[str, Any]] = {
    "ddpo": {"kind": "ddpo", "minibatches": 2, "least": 2},
    "grpo": {"kind": "grpo", "steps": 2, "inner_epochs": 2},
    "importance": {"kind": "importance", "buffer": 6, "fits": 2, "levels": 1},
    "raft": {"kind": "importance", "path_weights": False, "fits": 1},
    "dpo": {"kind": "dpo", "fits": 2, "levels": 2},
}


def recipe_of(catalog: Any, output: Path, method: dict[str, Any], *, rewards: Any = REWARDS, **model: Any) -> Any:
    data = {
        **FOUR_UPDATES,
        "model": {**FOUR_UPDATES["model"], "noise": 0.7, **model},
        "method": method,
        "rewards": rewards,
        "evaluation": {**FOUR_UPDATES["evaluation"], "scales": []},
        "output": str(output),
    }
    return load_recipe(data, catalog=catalog)


@pytest.mark.parametrize("name", some(METHODS, "importance", "dpo"))
def test_a_run_that_is_stopped_goes_on_in_every_bit(
    name: str, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    notes: list[str] = []
    whole = run_recipe(
        recipe_of(catalog, tmp_path / "whole", METHODS[name]), catalog, progress=lambda *said: notes.append(said[3])
    )
    record = read_run(whole.folder)
    assert record.reward_queries == 16
    assert all(report.penalties["kl"] >= 0 for report in record.reports)
    assert record.facts.drawn_otherwise == "evaluations are drawn with no noise in the steps (0.7 in training)"
    assert record.facts.drawn_otherwise in notes
    assert set(record.before.scores) == {"brightness", "redness"}

    goes_on(recipe_of(catalog, tmp_path / "parts", METHODS[name]), catalog, whole.folder, monkeypatch)


def goes_on(parts: Any, catalog: Any, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a run after its third update, takes it up again, and compares it with one that was not stopped."""

    def stop_after_the_third(report: Any, *_: Any) -> None:
        if report.update == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("draft_core.runs.run._tell", stop_after_the_third)
        with pytest.raises(Interrupted):
            run_recipe(parts, catalog)
    run = run_recipe(parts, catalog).folder
    loras = [load_file(folder / "lora/pytorch_lora_weights.safetensors") for folder in (whole, run)]
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])
    rows = [
        [{**json.loads(line), "seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, run)
    ]
    assert rows[0] == rows[1]
    assert (whole / "evaluations.jsonl").read_bytes() == (run / "evaluations.jsonl").read_bytes()


@pytest.fixture(scope="module", params=some(dict.fromkeys(("Stable Diffusion 3", "FLUX.1")), "Stable Diffusion 3"))
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The fields of a model that matches flows, in a folder."""
    family = next(family for family in FAMILIES if family.name == request.param)
    folder = tmp_path_factory.mktemp("flow") / "model"
    family.pipe().save_pretrained(folder)
    call = {**family.call(torch.float32), "negative_prompt": ""}
    return {"pretrained": str(folder), "guidance_scale": call.pop("guidance_scale"), "call": call}


@pytest.mark.parametrize("name", [*some(METHODS, "grpo"), "surrogate"])
def test_a_flow_model_is_trained_and_watched_and_goes_on_in_every_bit(
    name: str, flow: dict[str, Any], catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**METHODS, "surrogate": {"kind": "draft-k"}}[name]
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    more: dict[str, Any] = {"noise": 0.0} if name == "surrogate" else {}
    rewards = [{"kind": "brightness", **({"surrogate": SMALL_SURROGATE} if name == "surrogate" else {})}]

    def recipe(folder: str) -> Any:
        return recipe_of(catalog, tmp_path / folder, given, rewards=rewards, **flow, **more)

    record = read_run(run_recipe(recipe("whole"), catalog).folder)
    assert all(report.grad_norm > 0 for report in record.reports)
    assert not any(report.skipped for report in record.reports)
    assert record.reports[-1].penalties["kl"] > 0, "the model has left the base model, and the loss sees it"
    assert [evaluation.update for evaluation in record.evaluations] == [0, 2, 4]
    for evaluation in record.evaluations:
        assert set(evaluation.scores) == {"brightness", "redness"}
        assert (len(evaluation.diversity), len(evaluation.drift)) == (2, 4)
    assert max(record.evaluations[-1].drift) > max(record.evaluations[0].drift)
    goes_on(recipe("parts"), catalog, tmp_path / "whole", monkeypatch)


@in_full
def test_a_flow_model_that_exploits_its_reward_is_stopped(
    flow: dict[str, Any], catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO at a rate far too large: what is trained rises, what is held out falls, and the run ends there."""
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    notes: list[str] = []
    data = {
        **FOUR_UPDATES,
        "model": {**FOUR_UPDATES["model"], "noise": 0.7, **flow},
        "method": {"kind": "grpo", "minibatches": 2},
        "rewards": REWARDS,
        "train": {"steps": 60, "batch_size": 8, "images_per_prompt": 4, "learning_rate": 0.1},
        "regularizers": {},
        "evaluation": {
            **FOUR_UPDATES["evaluation"],
            "every": 3,
            "on_collapse": "stop",
            "tolerance": 0.02,
            "scales": [],
        },
        "output": str(tmp_path / "run"),
    }
    recipe = load_recipe(data, catalog=catalog)
    result = run_recipe(recipe, catalog, progress=lambda *said: notes.append(said[3]))
    assert result.verdict.collapsed
    assert result.after.update < 60
    assert any("collapsing" in note for note in notes)
    before, after = (seen.means() for seen in (result.before, result.after))
    assert after["brightness"] > before["brightness"]
    assert after["redness"] < before["redness"] or result.verdict.lost[0].startswith("diversity fell")


@pytest.mark.usefixtures("blank_curves")
def test_the_pages_count_queries_and_show_what_the_method_reports(catalog: Any, tmp_path: Path) -> None:
    runs = [run_recipe(recipe_of(catalog, tmp_path / name, METHODS[name]), catalog) for name in ("importance", "grpo")]
    page = runs[0].report.read_text(encoding="utf-8")
    assert "with 16 images scored in training" in page
    assert "Curve of effective share against updates" in page
    assert "Curve of acceptance rate against updates" in page
    compared = write_comparison([read_run(run.folder) for run in runs], tmp_path / "comparison.html")
    assert compared.read_text(encoding="utf-8").count("with 16 images scored in training") == 2


def test_a_deterministic_scheduler_is_refused_before_anything_is_drawn(catalog: Any, tmp_path: Path) -> None:
    recipe = recipe_of(catalog, tmp_path / "run", METHODS["ddpo"], noise=0.0)
    with pytest.raises(SamplerError, match=r"model.scheduler: no step of DDIMScheduler draws noise"):
        run_recipe(recipe, catalog)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()
    recipe = recipe_of(catalog, tmp_path / "run", METHODS["raft"], call={"eta": 1.0})
    with pytest.raises(SamplerError, match=r"DDIMScheduler draws noise of its own"):
        run_recipe(recipe, catalog)
