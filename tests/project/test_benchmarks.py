"""The comparison of the methods: its smallest run works, goes on where it stopped, and reads its runs rightly."""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from draft_core import load_catalog
from tests.support.thorough import in_full

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CATALOG = load_catalog()
pytestmark = pytest.mark.skipif(
    "emoji" not in CATALOG.pretrained or "jpeg" not in CATALOG.rewards,
    reason="draft-emoji and draft-reward-jpeg are not both installed",
)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark as a module of its own, with nothing left of an earlier import."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    return imported("compare", monkeypatch)


@in_full
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


# Methods without a gradient


@pytest.fixture
def compare_rl(monkeypatch: pytest.MonkeyPatch) -> Any:
    return imported("compare_rl", monkeypatch)


@in_full
def test_methods_without_a_gradient_are_compared_and_a_killed_run_is_the_uninterrupted_one(
    compare_rl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (task,) = compare_rl.QUICK
    words = ["--quick", "--runs", str(tmp_path / "whole")]
    compare_rl.main(words)
    printed = capsys.readouterr().out
    run = compare_rl.Run(task, task.entries[1], 1e-3, 0)
    whole = compare_rl.read_run(run, tmp_path / "whole" / task.name)
    assert [point.queries for point in whole.points] == [0, 4, 8]
    assert [point.updates for point in whole.points] == [0, 1, 2]
    assert whole.points[0].seconds == 0 < whole.points[1].seconds < whole.points[2].seconds
    assert whole.points[0].scores != whole.points[2].scores

    judged = compare_rl.make_judge

    def dies_at_the_second(*words: Any, **more: Any) -> Any:
        judge, calls = judged(*words, **more), []

        def judge_once() -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return judge()

        return judge_once

    parts = tmp_path / "parts" / task.name
    with monkeypatch.context() as patch:
        patch.setattr(compare_rl, "make_judge", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            compare_rl.train(run, parts)
    assert len(compare_rl.read_run(run, parts).points) == 1
    resumed = compare_rl.train(run, parts)
    assert [replace(point, seconds=0) for point in resumed.points] == [
        replace(point, seconds=0) for point in whole.points
    ]

    monkeypatch.setattr(compare_rl, "make_trainer", None)
    capsys.readouterr()
    compare_rl.main(words)
    assert capsys.readouterr().out == printed[printed.index("\n| method") :]
    page = tmp_path / "page.md"
    page.write_text("<!-- quick -->\n<!-- end of quick -->\n", encoding="utf-8")
    compare_rl.main([*words, "--plot", "--page", str(page), "--image", str(tmp_path / "image.png")])
    assert page.read_text(encoding="utf-8").count("\n| ") == 5  # heads, a line, three methods
    assert (tmp_path / "image.png").stat().st_size > 20_000


def test_a_gain_has_its_price_where_the_line_crosses_it_above_the_floor(compare_rl: Any) -> None:
    task = compare_rl.TASKS[0]

    def at(queries: int, kilobytes: float, alignment: float) -> Any:
        scores = {"jpeg-size": -kilobytes, "emoji-clip": alignment}
        return compare_rl.Point(updates=queries // 4, queries=queries, seconds=queries / 2, scores=scores)

    points = (at(0, 2.0, 0.8), at(8, 1.96, 0.79), at(16, 1.80, 0.77))  # 2 % and then 10 % smaller
    run = compare_rl.Run(task, task.entries[0], 1e-3, 0, points)
    assert run.price(2) == pytest.approx((8, 4))
    assert run.price(6) == pytest.approx((12, 6))
    assert run.price(11) is None
    assert run.best() is points[2]
    assert run.is_over()
    # 92 % of the alignment at the end, so that the line is at the floor a little before it
    spoilt = replace(run, points=(*points[:2], at(16, 1.80, 0.8 * 0.92)))
    assert spoilt.price(6) == pytest.approx((12, 6))
    assert spoilt.price(9.99) is None
    assert spoilt.best() is points[1]
    assert spoilt.is_over()
    assert run.rank() < spoilt.rank() < replace(run, points=points[:1]).rank()
    # Nothing after the floor counts, though the alignment may come back.
    back = replace(run, points=(points[0], at(8, 1.99, 0.7), at(16, 1.8, 0.8)))
    assert back.price(5) is None
    assert back.best() is points[0]
    top = compare_rl.TASKS[2]
    shares = tuple(
        replace(point, scores={"emoji-judge-top1": share, "emoji-clip": 0.8})
        for point, share in zip(points, (0.5, 0.6, 0.55), strict=True)
    )
    assert compare_rl.Run(top, top.entries[0], 1e-3, 0, shares).price(5) == pytest.approx((4, 2))
    assert not compare_rl.Run(top, top.entries[0], 1e-3, 0, shares).is_over()
    cells = [
        compare_rl.price_cell(runs, 8) for runs in ([run, run], [run, back], [back], [replace(run, points=points[:2])])
    ]
    assert compare_rl.table(task, Path("nowhere")).count("to ") == len(task.levels), "the mark is among them"
    assert cells == ["14 ± 0 (7 s)", "14 (7 s; 1 of 2)", "floor after 0", "> 8"]


def test_the_page_says_what_the_published_runs_say(compare_rl: Any) -> None:
    """The tables of few steps are those of the files beside the page, to the letter."""
    setting = compare_rl.SETTINGS["few-steps"]
    page = compare_rl.PAGE.read_text(encoding="utf-8")
    begun = [task for task in setting.tasks if any((setting.runs / task.name).glob("*.jsonl"))]
    assert begun
    for task in begun:
        assert f"<!-- {task.name} -->\n{compare_rl.table(task, setting.runs)}\n<!-- end of {task.name} -->" in page


def test_no_runs_leave_page_and_image_as_they_are(compare_rl: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are no runs; train some"):
        compare_rl.main(["--plot", "--runs", str(tmp_path), "--page", str(tmp_path / "none.md")])
    assert not list(tmp_path.iterdir())


# Remedies against reward hacking


def test_remedies_are_compared_where_the_trained_reward_has_risen_equally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontier = imported("frontier", monkeypatch)
    rising = [frontier.Point(6.0 * n, 0.7 + 0.01 * n, -0.1 + 0.02 * n, 0.1 - 0.01 * n) for n in range(4)]
    found = frontier.Cell("none", 0, tuple(rising)).at_rise(0.025)
    assert asdict(found) == pytest.approx({"at": 15, "trained": 0.725, "judge": -0.05, "diversity": 0.075})
    assert frontier.Cell("none", 0, tuple(rising)).at_rise(0.04) is None
    # A judge that falls with the square of the rise, seldom evaluated: half-way a straight line says -0.08.
    seldom = [frontier.Point(n, 0.04 * n, -20 * (0.04 * n) ** 2, 0.1) for n in range(4)]
    falling = frontier.Cell("none", 0, (*seldom[:2], seldom[0], *seldom[2:])).at_rise(0.06)
    assert falling.judge == pytest.approx(-20 * 0.06**2, abs=0.002)
    file = tmp_path / "cells.jsonl"
    monkeypatch.setattr(
        frontier, "trained", lambda reward, remedy, seed, size: frontier.Cell(remedy, seed, tuple(rising), reward)
    )
    for reward, seed in (("jpeg", 0), ("palette", 0), ("jpeg", 1), ("jpeg", 1)):  # what is there is not trained again
        frontier.train_missing(reward, "kl 1", seed, frontier.Size(), file)
    cells = frontier.read(file)
    assert [(cell.reward, cell.seed) for cell in cells] == [("jpeg", 0), ("palette", 0), ("jpeg", 1)]
    assert {cell.points for cell in cells} == {tuple(rising)}
    trial = replace(frontier.TRIALS["jpeg"], rises=(0.02,), most=0.03)
    monkeypatch.setattr(frontier, "TRIALS", {"jpeg": trial})
    monkeypatch.setattr(frontier, "PRICES", tmp_path / "prices.json")
    (tmp_path / "prices.json").write_text('{"jpeg": {"kl 1": 1.372}}', encoding="utf-8")
    assert "| kl 1 | 2 | 1.37 | +0.030 ± 0.000 | +0.040 ± 0.000 | -20.0% ± 0.0% |" in frontier.table(cells, "jpeg")
    better = [replace(point, judge=point.judge + 0.05 * (point.at > 0)) for point in rising]
    against = [frontier.Cell("none", 0, tuple(rising)), frontier.Cell("kl 1", 0, tuple(better))]
    assert "| kl 1 | 1 | 1.37 | +0.030 | +0.090 (+0.050) | -20.0% |" in frontier.table(against, "jpeg")
    assert "| none | 1 | - | +0.030 | +0.040 | -20.0% |" in frontier.table(against, "jpeg")
    monkeypatch.setattr(frontier, "TRIALS", dict.fromkeys(("jpeg", "palette"), trial))
    frontier.draw([*cells, *against], tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 5_000


# Two motions, on a critic's answers


def test_of_a_kind_are_both_videos_of_its_prompts_and_changes_are_counted_over_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video = imported("video_critic", monkeypatch)
    prompts = ["a fox moving up and growing", "a fox moving up and shrinking", "an owl moving up and growing"]
    assert video.of_kind("moving up and growing", prompts, [1, 2, 3, 4, 5, 6]) == [1, 2, 5, 6]
    # Gains of the prompts 1, 0 and 0.5: their mean is 0.5, its error 0.5 / sqrt(3).
    assert video.rose([0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], 2) == "0.833 (+1.7)"
    assert video.rose([0, 1], [0, 1], 1) == "0.500"
    row = video.row("share", [0.0, 0.0], [[0.5, 0.5], [1.0, 1.0], [0.0, 0.0]], 1)
    assert (row[1], row[-1]) == ("0.000", "0.500 ± 0.289")
