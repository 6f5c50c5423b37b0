"""The comparison of the methods: its smallest run works, goes on where it stopped, and reads its runs rightly."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from draft_core import load_catalog

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CATALOG = load_catalog()
pytestmark = pytest.mark.skipif(
    "emoji" not in CATALOG.pretrained or "jpeg" not in CATALOG.rewards,
    reason="draft-emoji and draft-reward-jpeg are not both installed",
)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "compare", raising=False)
    return importlib.import_module("compare")


def test_quick_trains_and_goes_on_from_its_files(
    compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--only", "quick-steps", "--runs", str(tmp_path / "runs")]
    compare.main(words)
    printed = capsys.readouterr().out
    steps = compare.QUICK[1]
    draft_1, reuse = (compare.runs_of(steps, method, tmp_path / "runs") for method in steps.methods)
    assert len(draft_1) == len(reuse) == 1
    # Two optimiser steps: two chains of two calls each, or one chain, the second step from its re-noised end.
    assert {run.points[-1].calls for run in draft_1} == {4}
    assert {run.points[-1].calls for run in reuse} == {3}
    assert {len(drift) for run in reuse for drift in run.drifts} == {1}

    monkeypatch.setattr(compare, "train", None)
    monkeypatch.setattr(compare, "make_trainer", None)
    compare.main(words)
    tables = capsys.readouterr().out
    assert tables == printed[printed.index("\nquick-steps: after") :]
    compare.save_image(steps, steps, tmp_path / "runs", tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 20_000


def test_a_run_is_at_the_mark_where_its_line_crosses_it_above_the_floor(compare: Any) -> None:
    base = compare.Point(updates=0, optimizer_steps=0, calls=0, kilobytes=2.0, alignment=0.8)
    above = replace(base, updates=2, optimizer_steps=16, calls=40, kilobytes=2.0 * (compare.MARK + 0.02))
    below = replace(
        base, updates=4, optimizer_steps=32, calls=80, kilobytes=2.0 * (compare.MARK - 0.02), alignment=0.72
    )
    run = compare.Run("draft-k 1", 1e-3, 0, (base, above, below), ())
    crossing = run.at_mark()
    assert asdict(crossing) == pytest.approx(
        {"updates": 3, "optimizer_steps": 24, "calls": 60, "kilobytes": 2.0 * compare.MARK, "alignment": 0.76}
    )
    assert run.cost() == pytest.approx(60)
    spoilt = replace(run, points=(base, above, replace(below, alignment=0.5)))
    assert spoilt.at_mark() is None
    assert spoilt.at_bytes().alignment == pytest.approx(0.65)
    assert replace(run, points=(base, above)).at_bytes() is None
    # Without the mark, the smallest files above the floor count.
    assert run.rank() < spoilt.rank() < replace(run, points=(base, replace(below, alignment=0.5))).rank()


def test_the_best_rate_is_the_cheapest_and_the_search_ends_behind_it(
    compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = compare.Point(0, 0, 0, 2.0, 0.8)
    ends = {
        4: (20, 1.5, 0.5),
        3: (60, 1.84, 0.8),
        2: (40, 1.84, 0.8),
        1: (40, 1.9, 0.8),
    }  # rate -> calls, kB, alignment
    tried = []

    def train(task: Any, method: Any, rate: float, seed: int, budget: float) -> Any:
        tried.append((rate, budget))
        calls, kilobytes, alignment = ends[int(rate)]
        return compare.Run(method.name, rate, seed, (base, compare.Point(1, 1, calls, kilobytes, alignment)), ())

    monkeypatch.setattr(compare, "train", train)
    task = replace(compare.QUICK[0], rates=(4.0, 3.0, 2.0, 1.0, 0.5), budget=100, seeds=(0, 1))
    assert compare.best_rate(task, task.methods[0], tmp_path) == 2.0
    assert tried == [(4.0, 100), (3.0, 100), (2.0, 60), (1.0, 40)]
