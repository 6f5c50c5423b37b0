"""Reference curves: what ships, how one is made, and a run laid beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from draft_core.errors import DraftError
from draft_core.reporting.comparison import write_comparison
from draft_core.reporting.reference_curves import CURVES, curve_names, read_reference, save_curve
from draft_core.reporting.run_record import read_run
from draft_core.reporting.verdict import judged
from tests.reporting.test_page import Page
from tests.support.runs import made_run


def mean_of(line: dict[str, Any], name: str) -> float:
    return fmean(line["scores"].get(name) or line[name])


def test_the_demonstration_on_jpeg_is_judged_by_what_it_cost() -> None:
    record = read_reference("jpeg-demo")
    verdict = judged(record.rule, record.evaluations)
    assert (verdict.kind, verdict.headline) == ("costly", "The trained reward rose, at a cost")
    fell = dict(re.findall(r"([\w-]+) fell from \S+ to \S+ \((\S+) %\)", "; ".join(verdict.fell)))
    lines = [json.loads(line) for line in (CURVES / "jpeg-demo" / "evaluations.jsonl").read_text().splitlines()]
    for name, percent in (("emoji-clip", -20), ("diversity", -23), ("detail", -46)):
        before, after = mean_of(lines[0], name), mean_of(lines[-1], name)
        assert float(fell[name]) == pytest.approx(percent, abs=1)
        assert float(fell[name]) == pytest.approx(100 * (after / before - 1), abs=0.1)
    rose = dict(re.findall(r"([\w-]+) rose from \S+ to \S+ \((\S+) %\)", "; ".join(verdict.rose)))
    assert set(rose) == {"jpeg", "jpeg-size"}


@pytest.mark.parametrize("name", curve_names())
def test_a_curve_that_ships_is_whole_small_and_says_nothing_of_a_machine(name: str) -> None:
    record = read_reference(name)
    assert record.last.update == record.reports[-1].update
    files = list((CURVES / name).iterdir())
    assert {file.name for file in files} == {"run.json", "recipe.yaml", "metrics.jsonl", "evaluations.jsonl"}
    assert sum(file.stat().st_size for file in files) < 200_000
    assert not any(re.search(r"(?<![\w.:/-])/\w+/", file.read_text()) for file in files)


def test_a_curve_is_the_run_to_six_digits_without_its_paths(tmp_path: Path) -> None:
    made = made_run(
        tmp_path / "run", {"jpeg": [1 / 3, 2 / 3]}, trained={"jpeg": 1.0}, facts={"model": "/home/me/model"}
    )
    recipe = (
        "model: {pretrained: /home/me/model}\nrewards:\n- {kind: jpeg, subsampling: 4:2:0}\noutput: '/home/me/x y'\n"
    )
    (made.folder / "recipe.yaml").write_text(recipe)
    save_curve(read_run(made.folder), tmp_path / "curve")
    curve = read_run(tmp_path / "curve")
    assert curve.recipe_yaml == recipe.replace("/home/me/", "")
    assert (curve.facts.model, curve.facts.location) == ("model", "model")
    assert [report.update for report in curve.reports] == [report.update for report in made.reports]
    for seen, expected in zip(curve.evaluations, made.evaluations, strict=True):
        assert seen.scores["jpeg"] == pytest.approx(expected.scores["jpeg"], rel=1e-5)
        assert seen.detail == pytest.approx(expected.detail, rel=1e-5)
    assert not (tmp_path / "curve" / "images").exists()


def test_a_run_is_laid_beside_a_curve_that_has_no_images(tmp_path: Path) -> None:
    mine = made_run(tmp_path / "mine", {"jpeg": [-2, -1], "emoji-clip": [0.5, 0.5]}, trained={"jpeg": 1.0})
    page = Page(write_comparison([mine, read_reference("jpeg-demo")], tmp_path / "page.html").read_text())
    text = " ".join(page.text.split())
    assert page.open == []
    assert "jpeg mine trained" in text
    assert "jpeg jpeg-demo (reference) trained" in text
    assert "There are no images of jpeg-demo (reference) here." in text
    curves = [image["alt"] or "" for image in page.images if "Curve of emoji-clip" in (image["alt"] or "")]
    assert any("mine: from 0.5" in curve and "jpeg-demo (reference): from 0.81" in curve for curve in curves)


def test_a_run_that_kept_its_images_shows_them_beside_one_that_did_not(tmp_path: Path) -> None:
    mine = made_run(tmp_path / "mine", {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
    save_curve(made_run(tmp_path / "other", {"jpeg": [1, 3]}, trained={"jpeg": 1.0}), tmp_path / "curve")
    page = Page(write_comparison([mine, read_reference(str(tmp_path / "curve"))], tmp_path / "page.html").read_text())
    shown = [image["alt"] for image in page.images if (image["alt"] or "").startswith("a dog")]
    assert shown == ["a dog, before", "a dog, mine, update 10"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("jpeg-dem", "did you mean 'jpeg-demo'?"), ("nothing like it", f"the curves are {', '.join(curve_names())}")],
)
def test_what_is_neither_curve_nor_run_is_answered_with_the_names(name: str, sentence: str) -> None:
    with pytest.raises(
        DraftError, match=r"--against: .* is neither a reference curve nor the folder of a run"
    ) as caught:
        read_reference(name)
    assert sentence in str(caught.value)
