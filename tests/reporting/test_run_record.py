"""A run's folder whose files are damaged: each ends in one sentence that names the file; no row is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from draft_core.errors import CheckpointError, DraftError
from draft_core.evaluation.collapse import EvalRecord
from draft_core.reporting.run_record import EVALUATIONS, FACTS, METRICS, load_images, read_rows, read_run
from draft_core.reporting.summary import summarize
from tests.support.runs import made_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made_run(tmp_path / "run", {"redness": [0.1, 0.2, 0.3]}, trained={"redness": 1.0}, prompts=("a bird", "a cat"))
    return tmp_path / "run"


def changed(path: Path, line: int, **fields: Any) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **fields})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        (EVALUATIONS, {"prompts": "two"}, "line 2 cannot be read (its prompts is 'two')"),
        (EVALUATIONS, {"scores": ["redness"]}, "line 2 cannot be read (its scores is"),
        (EVALUATIONS, {"detail": [0.1, [], 0.2, 0.3]}, "line 2 cannot be read (its detail is"),
        (
            EVALUATIONS,
            {"drift": [0.1]},
            "the evaluation after update 10 is not of the 4 images that run.json speaks of",
        ),
        (EVALUATIONS, {"prompts": 3}, "the evaluation after update 10 is not of the 4 images"),
        (METRICS, {"reward": "high"}, "line 2 cannot be read (its reward is 'high')"),
        (METRICS, {"scores": {"redness": True}}, "line 2 cannot be read (its scores is"),
        (METRICS, {"surprise": 1}, "line 2 cannot be read ("),
    ],
)
def test_a_row_of_another_kind_is_named_with_its_line(
    name: str, fields: dict[str, Any], sentence: str, run: Path
) -> None:
    changed(run / name, 1, **fields)
    with pytest.raises(CheckpointError) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{run / name}: {sentence}")


@pytest.mark.parametrize("fields", [{"seeds": "0"}, {"rewards": {"redness": "1"}}, {"licences": [{"thing": 1}]}])
def test_facts_of_another_kind_are_refused(fields: dict[str, Any], run: Path) -> None:
    facts = json.loads((run / FACTS).read_text(encoding="utf-8"))
    (run / FACTS).write_text(json.dumps({**facts, **fields}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="its record cannot be read"):
        read_run(run)


def test_a_torn_last_line_is_left_out_and_a_torn_one_before_it_is_not(run: Path) -> None:
    path = run / EVALUATIONS
    first, second, third = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n{second}\n{third[:40]}", encoding="utf-8")
    assert [row.update for row in read_rows(path, EvalRecord)] == [0, 10]
    path.write_text(f"{first}\n{second[:40]}\n{third}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"evaluations\.jsonl: line 2 cannot be read"):
        read_rows(path, EvalRecord)


def test_an_image_of_another_size_is_named(run: Path) -> None:
    Image.new("RGB", (64, 3)).save(run / "images" / "000010" / "002.png")
    with pytest.raises(DraftError, match=r"002\.png: it is 64 x 3 pixels, the first is 16 x 16; copy the run again"):
        load_images(run, 10)


@pytest.mark.parametrize("place", [0, 1, -1], ids=["first", "middle", "last"])
def test_an_image_that_is_gone_is_named_and_no_other_takes_its_place(run: Path, place: int) -> None:
    record = read_run(run)
    gone = sorted((run / "images" / f"{record.last.update:06d}").iterdir())[place]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"{gone.name}: there is no such file; copy the run again"):
        summarize(record)


def test_brackets_without_end_are_no_record(run: Path) -> None:
    for name in (METRICS, FACTS):
        (run / name).write_text("[" * 100_000, encoding="utf-8")
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_run(run)
