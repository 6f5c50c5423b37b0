"""The best scale of a run's LoRA: what is seen at scales 0 and 1 is what the run itself saw first and last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draft_core.errors import CheckpointError, DraftError
from draft_core.evaluation.collapse import CollapseRule, EvalRecord
from draft_core.library.scales import JudgedScales, judge_scales
from draft_core.recipe.load import load_recipe
from draft_core.runs.run import run_recipe
from tests.support.runs import FOUR_UPDATES, made_run, without_pages

RULE = CollapseRule({"trained": 1.0}, tolerance=2.0)


def seen(trained: float, held: float) -> EvalRecord:
    """Six prompts, an image each; spreads of .1 and 1, which changes do not touch."""
    spread = [-0.1, 0.0, 0.1, -0.1, 0.0, 0.1]
    scores = {"trained": [trained + by for by in spread], "held": [held + 10 * by for by in spread]}
    return EvalRecord(0, 6, scores, [], [0.0] * 6, [0.1] * 6, [0.1] * 6)


@pytest.mark.parametrize(
    ("held", "best"),
    [
        ({0.5: 5.0, 0.75: 5.0, 1.0: 5.0}, 1.0),  # nothing fell
        ({0.5: 5.0, 0.75: 4.5, 1.0: 4.0}, 0.5),  # it fell by less than two spreads, and yet beyond chance
        ({0.5: 4.5, 0.75: 4.0, 1.0: 1.0}, 0.75),  # it fell at all, and is lost at the last
        ({0.5: 1.0, 0.75: 1.0, 1.0: 1.0}, 0.0),  # lost at all: the base model is the best
    ],
)
def test_the_best_scale_has_the_highest_reward_of_those_that_cost_nothing(
    held: dict[float, float], best: float
) -> None:
    records = {0.0: seen(0.5, 5.0)} | {scale: seen(0.5 + scale, value) for scale, value in held.items()}
    assert JudgedScales(RULE, records).best == best


def test_rewards_are_added_up_as_training_divided_them() -> None:
    rule = CollapseRule({"trained": 1.0, "held": 1.0}, tolerance=2.0)
    records = {0.0: seen(0.0, 5.0), 0.5: seen(0.4, 5.3), 1.0: seen(0.3, 5.5)}
    assert JudgedScales(rule, records).best == 1.0
    divided = {scale: replace(it, divisors={"trained": 0.1, "held": 1.0}) for scale, it in records.items() if scale}
    assert JudgedScales(rule, {0.0: records[0.0], **divided}).best == 0.5


def test_scales_are_judged_as_the_run_was_and_the_best_is_mixed(
    draft: Any, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    monkeypatch.setattr("draft_core.library.scales.load_catalog", lambda: catalog)
    fields = {**FOUR_UPDATES, "method": {"kind": "draft-k", "k": 1}, "rewards": [{"kind": "redness"}], "metrics": []}
    result = run_recipe(load_recipe({**fields, "output": str(tmp_path / "run")}, catalog=catalog), catalog)
    judged = judge_scales(tmp_path / "run", [1, 0.5, 1], catalog=catalog)
    assert list(judged.records) == [0.0, 1.0, 0.5]
    for scale, of_run in ((0.0, result.before), (1.0, result.after)):
        assert judged.records[scale].scores["redness"] == pytest.approx(of_run.scores["redness"], abs=2e-3)
    assert judged.records[1.0].means()["redness"] > judged.records[0.5].means()["redness"] + 1e-3
    code, text = draft("mix", "run", "--scales", "1", "--output", "best")
    assert (code, (tmp_path / "best" / "pytorch_lora_weights.safetensors").is_file()) == (0, True), text
    assert "the best is 1;" in text
    assert "2 prompts are too few to tell a change from chance" in text
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("count: 2", "count: 1"), encoding="utf-8")
    with pytest.raises(DraftError, match="its recipe names other held-out prompts"):
        judge_scales(tmp_path / "run", [1], catalog=catalog)


def test_what_has_no_best_scale_is_refused_before_anything_is_drawn(
    draft: Any, catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.library.scales.load_catalog", lambda: catalog)
    made_run(tmp_path / "run", {"redness": [1, 2]}, trained={"redness": 1.0}, prompts=["not on the list"])
    (tmp_path / "full" / "it").mkdir(parents=True)
    for words, sentence in (
        ("run run --scales 1 -o new", "--scales: the best scale is that of one run"),
        ("run:0.5 --scales 1 -o new", "--scales: the best scale is that of one run"),
        ("run --scales half -o new", "'half' is not a number"),
        ("run --scales 0 -o new", "scales: there are none beside 0; give some"),
        ("run --scales nan -o new", "nan is not a finite number"),
        ("run --scales 1 -o full", "full: it is there already, and not empty"),
        ("full --scales 1 -o new", "full: there is no pytorch_lora_weights.safetensors"),
        ("run/lora --scales 1 -o new", "it holds no finished run"),
    ):
        code, text = draft("mix", *words.split())
        assert (code, sentence in text) == (2, True), text
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="it holds no finished run"):
        judge_scales(tmp_path / "full", [1], catalog=catalog)
