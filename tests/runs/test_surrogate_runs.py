"""Whole runs on surrogates of rewards: going on after a stop, queries, what is said, and the page."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.errors import Interrupted
from draft_core.recipe.load import load_recipe
from draft_core.reporting.run_record import read_run
from draft_core.runs.run import run_recipe
from tests.support.runs import FOUR_UPDATES, SMALL_SURROGATE, without_pages
from tests.support.thorough import THOROUGH


def recipe_of(catalog: Any, output: Path, *, surrogate: Any = SMALL_SURROGATE, **more: Any) -> Any:
    data = {
        **FOUR_UPDATES,
        "method": {"kind": "draft-lv", "resamples": 1},
        "rewards": [{"kind": "brightness", "surrogate": surrogate}],
        "output": str(output),
        **more,
    }
    return load_recipe(data, catalog=catalog)


@pytest.mark.parametrize("space", ["latent", "image"])
def test_a_run_that_is_stopped_goes_on_in_every_bit(
    space: str, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    surrogate = {**SMALL_SURROGATE, "space": space}
    notes: list[str] = []
    whole = run_recipe(
        recipe_of(catalog, tmp_path / "whole", surrogate=surrogate),
        catalog,
        progress=lambda *said: notes.append(said[3]),
    )
    record = read_run(whole.folder)
    assert [report.reward_queries for report in record.reports] == [20, 4, 4, 4]
    assert all(report.penalties["kl"] >= 0 for report in record.reports)
    assert all(report.grad_norm > 0 for report in record.reports)
    assert [set(report.learner) for report in record.reports] == [
        {"brightness itself", "brightness rank agreement"}
    ] * 4
    assert any("nothing is decoded with a gradient" in note for note in notes) == (space == "latent")
    assert set(record.before.scores) == {"brightness", "redness"}

    if space == "image" and not THOROUGH:
        return
    parts = recipe_of(catalog, tmp_path / "parts", surrogate=surrogate)
    with monkeypatch.context() as patch:

        def stop_after_the_third(report: Any, *_: Any) -> None:
            if report.update == 3:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr("draft_core.runs.run._tell", stop_after_the_third)
        with pytest.raises(Interrupted):
            run_recipe(parts, catalog)
    run_recipe(parts, catalog)
    loras = [load_file(tmp_path / run / "lora/pytorch_lora_weights.safetensors") for run in ("whole", "parts")]
    assert all(torch.equal(loras[0][key], loras[1][key]) for key in loras[0])
    rows = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
