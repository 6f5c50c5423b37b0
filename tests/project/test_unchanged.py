"""The program that compares two commits sees planted differences, and its recipes are valid in both vocabularies."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from draft_core import load_catalog
from draft_core.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def unchanged() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unchanged", ROOT / "benchmarks" / "unchanged.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["unchanged"] = module
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, *, evaluations: str = "evaluations.jsonl") -> Path:
    """A run folder with what is compared in it."""
    (folder / "lora").mkdir(parents=True)
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, folder / "lora" / "pytorch_lora_weights.safetensors")
    rows: list[dict[str, Any]] = [{"update": n, "loss": 0.1 * n, "seconds": 1.0, "skipped": None} for n in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [{"update": 0, "scores": {"jpeg": [0.5, math.nan]}}]
    (folder / evaluations).write_text("".join(json.dumps(row) + "\n" for row in scores))
    return folder


def changed_row(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        path = folder / file
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows[-1])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return plant


def changed_weight(folder: Path) -> None:
    file = folder / "lora" / "pytorch_lora_weights.safetensors"
    weights = torch.arange(4.0)
    weights[2] = torch.nextafter(weights[2], torch.tensor(3.0))
    save_file({"a": weights, "b": torch.ones(2, 2)}, file)


def lost_weight(folder: Path) -> None:
    save_file({"a": torch.arange(4.0)}, folder / "lora" / "pytorch_lora_weights.safetensors")


def last_row_lost(folder: Path) -> None:
    file = folder / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


PLANTED = {
    "the last bit of a weight": (changed_weight, "LoRA", 2.0**-22),
    "a weight less": (lost_weight, "LoRA", math.inf),
    "a row less": (last_row_lost, "metrics", math.inf),
    "a loss": (changed_row("metrics.jsonl", lambda row: row.update(loss=0.25)), "metrics", 0.05),
    "a field less": (changed_row("metrics.jsonl", lambda row: row.pop("skipped")), "metrics", math.inf),
    "a field more": (changed_row("metrics.jsonl", lambda row: row.update(more=1)), "metrics", math.inf),
    "a number where none was": (changed_row("metrics.jsonl", lambda row: row.update(skipped=1)), "metrics", math.inf),
    "a loss that is no number": (
        changed_row("metrics.jsonl", lambda row: row.update(loss=math.nan)),
        "metrics",
        math.inf,
    ),
    "a score": (
        changed_row("evaluations.jsonl", lambda row: row.update(scores={"jpeg": [0.75, math.nan]})),
        "evaluations",
        0.25,
    ),
    "no run": (
        lambda folder: shutil.rmtree(folder / "lora") or (folder / "metrics.jsonl").unlink(),
        "no run in tree",
        math.inf,
    ),
}


def test_the_same_run_is_equal_whatever_its_seconds_and_its_files_name(unchanged: ModuleType, tmp_path: Path) -> None:
    base = write_run(tmp_path / "base" / "case", evaluations="looks.jsonl")
    tree = write_run(tmp_path / "tree" / "case")
    changed_row("metrics.jsonl", lambda row: row.update(seconds=9.0, further={}))(tree)
    assert unchanged.compare(base, tree) == {}


@pytest.mark.parametrize(("plant", "what", "size"), PLANTED.values(), ids=PLANTED)
def test_a_planted_difference_is_seen(
    unchanged: ModuleType, tmp_path: Path, plant: Callable[[Path], None], what: str, size: float
) -> None:
    base, tree = write_run(tmp_path / "base" / "case"), write_run(tmp_path / "tree" / "case")
    plant(tree)
    assert unchanged.compare(base, tree) == {what: pytest.approx(size)}


def test_only_a_difference_without_a_reason_fails(unchanged: ModuleType) -> None:
    (intended, *_) = unchanged.INTENDED
    rows = [unchanged.Row("draft", {}), unchanged.Row(intended, {"LoRA": 0.5}), unchanged.Row("draft", {"LoRA": 0.5})]
    assert [row.failed for row in rows] == [False, False, True]
    text = unchanged.table(rows)
    assert "| draft | equal |" in text
    assert f"| {intended} | differs by intention (LoRA: 0.5): the call" in text
    assert "| draft | DIFFERS (LoRA: 0.5) |" in text


def test_every_reason_belongs_to_a_case(unchanged: ModuleType) -> None:
    cases = {case for recipes in unchanged.cases().values() for case in recipes}
    assert set(unchanged.INTENDED) <= cases


def test_every_method_is_trained(unchanged: ModuleType) -> None:
    """All that a base commit can have: the methods without a gradient came with what they need."""
    trained = {recipe["method"]["kind"] for recipe in unchanged.cases()["emoji"].values()}
    assert trained == {kind for kind, entry in load_catalog().methods.items() if entry.spec.needs_gradient}


def test_the_recipes_are_valid(unchanged: ModuleType, tmp_path: Path) -> None:
    catalog = load_catalog()
    written = unchanged.write_recipes(tmp_path, "prefix-reuse")
    assert set(written) == {"emoji"}
    for case in written["emoji"]:
        recipe = load_recipe(tmp_path / "emoji" / f"{case}.yaml", catalog=catalog)
        assert recipe.train.steps == 6


def test_a_former_recipe_has_the_former_words(unchanged: ModuleType) -> None:
    recipe = unchanged.cases()["emoji"]["draft-lv, batched"]
    former = unchanged.in_former_words(recipe)
    assert former["estimator"] == {"kind": "draft-lv", "resamples": 2, "together": True}
    assert former["measures"] == recipe["metrics"]
    assert not {"method", "metrics"} & set(former)
