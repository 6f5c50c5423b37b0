"""Whole runs on the tiny pipeline: evaluations on the way, the rule against collapse, the best checkpoint, going on."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.errors import CheckpointError, RecipeError
from draft_core.evaluation.collapse import CollapseRule
from draft_core.recipe.load import load_recipe
from draft_core.reporting.run_record import load_images, read_run
from draft_core.runs.folder import LOCK, RunFolder
from draft_core.runs.provenance import peak_memory
from draft_core.runs.run import RunResult, run_recipe
from draft_core.training.checkpoints import checkpoints
from draft_core.training.distributed import Processes
from tests.support.forked import forked
from tests.support.golden import assert_golden
from tests.support.runs import without_pages
from tests.support.tiny import GOOD

EVALUATION = {"prompts": "tiny-heldout", "count": 2, "images_per_prompt": 2, "every": 2, "scales": []}


def training(catalog: Any, folder: Path) -> Any:
    """Runs a recipe of six small updates with evaluations after 2, 4 and 6, and keeps what it said."""
    notes: list[str] = []

    def run(*overrides: str, pages: bool = False, **how: bool) -> RunResult:
        data = {
            **GOOD,
            "model": {"pretrained": "tiny", "num_inference_steps": 2},
            "method": {"kind": "draft-k"},
            "train": {"steps": 6, "batch_size": 2, "learning_rate": 3e-2},
            "evaluation": EVALUATION,
            "metrics": [{"kind": "brightness"}],
            "checkpoint": {"every": 3, "keep": 1},
            "output": str(folder / "run"),
        }
        recipe = load_recipe(data, overrides, catalog=catalog)

        def progress(stage: str, done: int, total: int, note: str) -> None:
            if stage == "note":
                notes.append(note)

        with pytest.MonkeyPatch.context() as patch:
            if not pages:
                patch.setattr("draft_core.runs.run.write_report", without_pages)
            return run_recipe(recipe, catalog, progress=progress, **how)

    run.notes = notes  # type: ignore[attr-defined]
    return run


@pytest.fixture
def train(catalog: Any, tmp_path: Path, blank_curves: None) -> Any:
    return training(catalog, tmp_path)


def test_held_out_images_are_evaluated_on_the_way(train: Any, tmp_path: Path) -> None:
    train("evaluation.tolerance=99")
    record = read_run(tmp_path / "run")
    assert [evaluation.update for evaluation in record.evaluations] == [0, 2, 4, 6]
    assert set(record.before.scores) == {"redness", "brightness"}
    assert max(record.before.drift) < 1 / 255, "the base model's images differ from themselves by their rounding"
    assert min(record.last.drift) > 0
    assert all(len(evaluation.diversity) == 2 for evaluation in record.evaluations)
    assert len(list((tmp_path / "run" / "images" / "000004").glob("*.png"))) == 4
    assert record.facts.prompts == ["a bird", "a fish"]
    assert load_images(record.folder, record.last.update).shape == (4, 3, 16, 16)


def kinds(value: Any, path: str = "") -> Iterator[str]:
    """A line for each key of a JSON value and its type; of a list the types of its items."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from kinds(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        yield from sorted({line for item in value for line in kinds(item, f"{path}[]")}) or [f"{path}[]"]
    else:
        yield f"{path}: {type(value).__name__}"


def test_the_keys_and_types_of_run_json_are_those_of_the_file(train: Any, tmp_path: Path) -> None:
    train("evaluation.tolerance=99", "train.steps=1", "evaluation.scales=[0.5]")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    facts["versions"] = {"DISTRIBUTION": next(iter(facts["versions"].values()))}
    facts["rewards"] = {"REWARD": next(iter(facts["rewards"].values()))}
    assert_golden("run.json.txt", "\n".join(kinds(facts)))


def test_a_run_that_exploits_its_reward_is_stopped_and_its_best_checkpoint_kept(train: Any, tmp_path: Path) -> None:
    result = train("evaluation.tolerance=0.02", "train.learning_rate=0.1", "train.steps=40", pages=True)
    assert result.verdict.collapsed
    assert result.after.update < 40
    assert "fell from" in result.verdict.lost[0]
    assert any("collapsing" in note for note in train.notes)
    record = read_run(tmp_path / "run")
    assert list(record.facts.collapse) == list(result.verdict.lost)
    assert "collapse" in (tmp_path / "run" / "report.html").read_text().lower()


def test_with_warn_the_run_goes_on(train: Any) -> None:
    result = train("evaluation.tolerance=0.02", "train.learning_rate=0.1", "evaluation.on_collapse=warn")
    assert result.after.update == 6


def test_the_best_lora_lies_beside_the_last(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(rule: CollapseRule, records: Any) -> Any:
        return records[min(1, len(records) - 1)]

    monkeypatch.setattr(CollapseRule, "best", second)
    train("evaluation.tolerance=99")
    folder = tmp_path / "run"
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["000002", "000006"], "the best is spared"
    best, last = (load_file(folder / name / "pytorch_lora_weights.safetensors") for name in ("lora-best", "lora"))
    assert best.keys() == last.keys()
    assert not all(torch.equal(best[name], last[name]) for name in best)
    train("evaluation.tolerance=99", "train.steps=2", f"output={tmp_path / 'short'}")
    short = load_file(tmp_path / "short" / "lora" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(best[name], short[name]) for name in best), "it is the LoRA after two updates"
    assert not (tmp_path / "short" / "lora-best").exists()


def test_a_torn_checkpoint_is_left_aside_and_the_one_before_taken(train: Any, tmp_path: Path) -> None:
    train("evaluation.tolerance=99", "checkpoint.keep=5")
    folder = tmp_path / "run"
    whole = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    (folder / "run.json").unlink()
    torn = folder / "checkpoints" / "000006" / "adapter.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    train("evaluation.tolerance=99", "checkpoint.keep=5")
    assert any("000006" in note and "not the file that was written" in note for note in train.notes)
    again = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [evaluation.update for evaluation in read_run(folder).evaluations] == [0, 2, 4, 6]
    assert [report.update for report in read_run(folder).reports] == [1, 2, 3, 4, 5, 6]


def test_no_usable_checkpoint_ends_with_one_sentence(train: Any, tmp_path: Path) -> None:
    train()
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="none of its checkpoints can be used; start anew with --overwrite"):
        train(resume=True)


def test_another_recipe_or_version_is_shown_as_a_difference(train: Any, tmp_path: Path) -> None:
    train()
    with pytest.raises(RecipeError, match=r"train.learning_rate: 0.03 -> 0.01; continue it all the same with --resume"):
        train("train.learning_rate=0.01", resume=True)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("tiny-plugin: '1.2'", "tiny-plugin: '1.1'"))
    with pytest.raises(RecipeError, match=r"versions.tiny-plugin: 1.1 -> 1.2"):
        train(resume=True)
    result = train("train.learning_rate=0.01", "train.steps=8", resume=True, force=True)
    assert result.after.update == 8


def test_a_run_without_a_checkpoint_yet_begins_anew(train: Any, tmp_path: Path) -> None:
    train()
    whole = load_file(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "run.json").unlink()
    train()
    again = load_file(tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_several_rewards_have_their_gradients_compared(train: Any, tmp_path: Path) -> None:
    train("rewards=[{kind: redness}, {kind: redness, contrast: 2.0, weight: -0.1}]", "evaluation.tolerance=99")
    record = read_run(tmp_path / "run")
    assert record.evaluations[1].cosines == {"redness ~ redness#2": pytest.approx(-1.0, abs=1e-3)}
    assert record.before.gradients == {}


def test_a_checkpoint_of_another_run_is_an_error_and_stays(train: Any, tmp_path: Path) -> None:
    train("checkpoint.keep=5")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(CheckpointError, match="made with seed 0, this run has seed 7"):
        train("checkpoint.keep=5", "train.seed=7", resume=True, force=True)
    assert checkpoints(tmp_path / "run" / "checkpoints")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.unusable"))


def folder_of(output: Path) -> RunFolder:
    return RunFolder(SimpleNamespace(output=output), Processes(cpu=True))  # type: ignore[arg-type]


def test_two_runs_never_write_one_folder_and_a_killed_one_lets_go(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with forked(lambda: folder_of(folder).locked()):
        with pytest.raises(RecipeError, match="another process is writing a run there"):
            train()
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert (folder / LOCK).is_file(), "a lock file is left, and nobody holds it"
    train()
    assert read_run(folder).last.update == 6


def test_two_runs_of_one_moment_never_write_one_folder(train: Any, catalog: Any, tmp_path: Path) -> None:
    """Both have seen that nobody writes there; one of them locks it first."""
    folder = tmp_path / "run"
    first = folder_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.runs.continuation.require_unlocked", lambda folder: None)
        with first.locked(), pytest.raises(RecipeError, match="another process is writing a run there"):
            train()
    train()


def test_a_lock_alone_is_an_empty_folder_and_a_foreign_folder_is_left_as_it_is(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        train()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    (folder / LOCK).touch()
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        train(resume=True)
    train("train.steps=1")


def test_the_peak_of_memory_is_0_where_the_system_does_not_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is no such module; `tests/project/test_other_systems.py` imports every module without it."""
    assert peak_memory(torch.device("cpu")) > 0
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) == 0


def test_a_run_killed_in_its_first_or_last_breath_can_be_begun_again(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml.partial").write_text("model")
    train()
    (folder / "run.json").unlink()
    (folder / "report.html").unlink()
    (folder / "evaluations.jsonl").write_bytes((folder / "evaluations.jsonl").read_bytes() + b'{"update": 7, "\xc3')
    train()
    assert (folder / "report.html").is_file()
    assert [evaluation.update for evaluation in read_run(folder).evaluations] == [0, 2, 4, 6]


@pytest.fixture(scope="module")
def whole(catalog: Any, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same run on a disk that is never full."""
    run: RunResult = training(catalog, tmp_path_factory.mktemp("whole"))()
    return run


@pytest.mark.parametrize("name", ["optimizer.pt", "evaluations.jsonl", "metrics.jsonl", "recipe.yaml"])
def test_a_full_disk_ends_in_one_sentence_and_the_run_can_go_on(
    train: Any, whole: RunResult, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" not in mode and path.name.removesuffix(".partial") == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(CheckpointError, match=r"No space left on device\); make room"):
            train()
    result = train()
    one, other = (load_file(run.folder / "lora" / "pytorch_lora_weights.safetensors") for run in (result, whole))
    assert all(torch.equal(one[key], other[key]) for key in one)
