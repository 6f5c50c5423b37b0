"""Runs tell their trackers every update, evaluation and image, and no tracker ends or changes a run."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import tracking
from safetensors.torch import load_file

from draft_core.errors import DraftError, RecipeError
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.runs.run import RunResult, run_recipe
from draft_core.tracking import trackers
from tests.support.runs import without_pages
from tests.support.tiny import GOOD

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {
    **GOOD,
    "train": {"steps": 4, "batch_size": 2, "learning_rate": 3e-2},
    "evaluation": {
        "prompts": "tiny-heldout",
        "count": 2,
        "images_per_prompt": 2,
        "every": 2,
        "scales": [],
        "tolerance": 99,
    },
}
NUMBERS = ("loss", "reward", "grad_norm", "learning_rate")
PROGRAM = """
import sys
from pathlib import Path
from draft_core.recipe.load import load_recipe
from draft_core.runs import run
from tests.support.runs import without_pages
from tests.support.tiny import tiny_catalog
from tests.tracking.test_trackers import RECIPE

folder, tracker, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
run.write_report = without_pages
catalog = tiny_catalog(folder / f"tiny-{steps}")
settings = {"wandb": {"mode": "offline"}, "trackio": {"project": "mine"}}[tracker]
data = {**RECIPE, "trackers": {tracker: settings}, "output": str(folder / "run")}
recipe = load_recipe(data, [f"train.steps={steps}"], catalog=catalog)
run.run_recipe(recipe, catalog, resume=steps > 4, force=True)
"""


@pytest.fixture
def train(catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a small recipe with these trackers, in `tmp_path/run`, and keeps what it said."""
    notes: list[str] = []
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)

    def run(trackers: Any, *overrides: str, **how: Any) -> RunResult:
        data = {**RECIPE, "trackers": trackers, "output": str(tmp_path / "run")}
        recipe = load_recipe(data, overrides, catalog=catalog)
        return run_recipe(recipe, catalog, progress=lambda *said: notes.append(said[3]), **how)

    run.notes = notes  # type: ignore[attr-defined]
    return run


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def means(row: dict[str, Any]) -> dict[str, float]:
    """What a tracker is told of an evaluation, from its line in the run's folder."""
    lists = {**row["scores"], **{name: row[name] for name in ("drift", "diversity", "colour", "detail")}}
    return {f"evaluation/{name}": sum(values) / len(values) for name, values in lists.items()}


def assert_told(told: dict[str, dict[int, float]], folder: Path) -> None:
    """That the curves hold what the run's own folder holds, each number at its update."""
    for row in rows(folder, "metrics.jsonl"):
        for name in NUMBERS:
            assert told[name][row["update"]] == pytest.approx(row[name], rel=1e-6), name
        assert told["scores/redness"][row["update"]] == pytest.approx(row["scores"]["redness"], rel=1e-6)
    for row in rows(folder, "evaluations.jsonl"):
        for name, mean in means(row).items():
            assert told[name][row["update"]] == pytest.approx(mean, rel=1e-5, abs=1e-8), name


# TensorBoard


def events(folder: Path) -> Any:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = module.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_curves_and_images_and_goes_on_in_the_same_run(train: Any, tmp_path: Path) -> None:
    train({"tensorboard": None})
    train({"tensorboard": {}}, "train.steps=6", resume=True)
    found = events(tmp_path / "run")
    told = {name: {event.step: event.value for event in found.Scalars(name)} for name in found.Tags()["scalars"]}
    assert_told(told, tmp_path / "run")
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found.Images("evaluation/before_after")] == [0, 2, 4, 6]
    assert any("tensorboard --logdir" in note for note in train.notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_image_shows_the_same_seeds_before_and_after(train: Any, tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    from draft_core.reporting.image_grid import CELL, GROUP_GAP, MARGIN

    train({"tensorboard": None})
    found = events(tmp_path / "run")
    last = found.Images("evaluation/before_after")[-1]
    grid = Image.open(BytesIO(last.encoded_image_string)).convert("RGB")
    step = CELL + MARGIN
    x = grid.width - 2 * step  # two images a prompt before, two after
    for column, (update, number) in {x: (4, 0), x + step: (4, 1), x - GROUP_GAP - step: (0, 1)}.items():
        with Image.open(tmp_path / "run" / "images" / f"{update:06d}" / f"{number:03d}.png") as image:
            expected = image.convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
        top = grid.height - 2 * step  # of the first of two prompts
        inner = (CELL // 4, CELL // 4, 3 * CELL // 4, 3 * CELL // 4)
        assert grid.crop((column, top, column + CELL, top + CELL)).crop(inner).tobytes() == (
            expected.crop(inner).tobytes()
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_changes_no_bit_of_the_run(train: Any, tmp_path: Path) -> None:
    train({"tensorboard": None})
    tracked = load_file(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    train({}, f"output={tmp_path / 'plain'}")
    plain = load_file(tmp_path / "plain" / "lora" / "pytorch_lora_weights.safetensors")
    assert tracked.keys() == plain.keys()
    assert all(torch.equal(tracked[name], plain[name]) for name in plain)
    assert not (tmp_path / "plain" / "trackers.json").exists()


# A tracker that fails


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("where", ["log", "log_images", "finish"])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def failing(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the service is gone\nfor now")

    monkeypatch.setattr(tracking.TensorBoardTracker, where, failing)
    result = train({"tensorboard": None})
    assert result.after.update == 4
    (said,) = [note for note in train.notes if "failed" in note]
    assert said.startswith("the tracker tensorboard failed (ConnectionError: the service is gone): the run goes on")
    assert len(rows(tmp_path / "run", "metrics.jsonl")) == 4


def test_a_tracker_that_cannot_start_ends_the_run_in_one_sentence(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Any) -> None:
        raise PermissionError("no entry")

    monkeypatch.setattr(tracking.TensorBoardTracker, "start", failing)
    with pytest.raises(DraftError, match=r"^trackers\.tensorboard: it cannot be started \(PermissionError: no entry\)"):
        train({"tensorboard": None})
    assert rows(tmp_path / "run", "metrics.jsonl") == []


# What is refused before a model is loaded


@pytest.mark.parametrize("name", trackers.CLASSES)
def test_a_missing_package_is_refused_before_loading(train: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match=rf"^trackers\.{name}: {name} is not installed; pip install"):
        train({name: {}})


def test_an_accelerate_without_the_tracker_is_refused(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tracking, "TensorBoardTracker")
    with pytest.raises(RecipeError, match="accelerate that is installed cannot start it"):
        train({"tensorboard": None})


@pytest.mark.parametrize(
    ("settings", "preset", "key", "refused"),
    [
        ({}, "online", None, True),
        ({}, "offline", None, False),
        ({}, "online", "secret", False),
        ({"mode": "offline"}, "online", None, False),
        ({"mode": "online"}, "offline", None, True),
        ({}, "online", ConnectionError("no network"), True),
    ],
)
def test_weights_and_biases_online_needs_a_login(
    monkeypatch: pytest.MonkeyPatch, catalog: Any, settings: Any, preset: str, key: Any, refused: bool
) -> None:
    def login(prompt: bool) -> bool:
        assert not prompt
        if isinstance(key, Exception):
            raise key
        return key is not None

    fake = SimpleNamespace(setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=preset)), login=login)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    recipe = load_recipe({**RECIPE, "trackers": {"wandb": settings}}, catalog=catalog)
    if refused:
        with pytest.raises(
            RecipeError, match=r"online \((nobody is logged|no network).*`wandb login`, or set trackers\.wandb\.mode"
        ):
            trackers.require_trackers(recipe.trackers)
    else:
        trackers.require_trackers(recipe.trackers)


# The field


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"wnadb": {}}, r"trackers\.wnadb: .*did you mean 'wandb'\?"),
        ({"wandb": {"projct": "x"}}, r"trackers\.wandb\.projct: .*did you mean 'project'\?"),
        ({"wandb": {"mode": "sometimes"}}, r"trackers\.wandb\.mode"),
        ({"trackio": {"project": ""}}, r"trackers\.trackio\.project"),
        (["tensorboard"], r"trackers: .*"),
    ],
)
def test_a_wrong_tracker_is_named(catalog: Any, value: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe({**RECIPE, "trackers": value}, catalog=catalog)


def test_a_tracker_without_fields_has_the_defaults_and_stays_in_the_written_recipe(catalog: Any) -> None:
    recipe = load_recipe({**RECIPE, "trackers": {"tensorboard": None, "trackio": None}}, catalog=catalog)
    assert list(recipe.trackers.named()) == ["tensorboard", "trackio"]
    from draft_core.recipe.yaml_text import parse_yaml

    again = load_recipe(parse_yaml(dump_recipe(recipe)), catalog=catalog)
    assert again.trackers == recipe.trackers


# The services themselves, on this machine


def tracked(folder: Path, tracker: str, **variables: str) -> None:
    """Four updates in a process of its own, and two more in another."""
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    for steps in (4, 6):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), tracker, str(steps)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", **variables},
            check=True,
            capture_output=True,
            timeout=300,
        )


def wandb_records(file: Path) -> Iterator[Any]:
    """The records in a run's file, which is in the format of LevelDB's logs: blocks of 32 KiB, pieces with a header."""
    from wandb.proto import wandb_internal_pb2

    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            yield found
            record = b""


def test_wandb_offline_holds_curves_and_images_under_one_id(tmp_path: Path) -> None:
    tracked(tmp_path, "wandb", WANDB_MODE="online")  # the recipe says offline
    told: dict[str, dict[int, Any]] = {}
    ids = set()
    for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project))
            for item in record.history.item if record.HasField("history") else ():
                name = item.key or "/".join(item.nested_key)
                told.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    assert len(ids) == 1
    assert next(iter(ids))[1] == "draft"
    assert_told(told, tmp_path / "run")
    assert list(told["loss"]) == [1, 2, 3, 4, 5, 6]
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/evaluation/before_after_*.png"))
    assert [int(file.name.split("_")[2]) for file in files] == [0, 2, 4, 6]


def test_trackio_on_this_machine_holds_curves_and_images_in_one_run(tmp_path: Path) -> None:
    tracked(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    told: dict[str, dict[int, Any]] = {}
    with sqlite3.connect(tmp_path / "trackio" / "mine.db") as base:
        found = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    for _, step, metrics in found:
        for name, value in json.loads(metrics).items():
            told.setdefault(name, {})[step] = value
    own = json.loads((tmp_path / "run" / "trackers.json").read_text())["id"]
    assert {name for name, _, _ in found} == {f"run-{own}"}
    assert_told(told, tmp_path / "run")
    images = told["evaluation/before_after"]
    assert list(images) == [0, 2, 4, 6]
    for image in images.values():
        assert (tmp_path / "trackio" / "media" / image["file_path"]).is_file()
