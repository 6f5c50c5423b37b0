"""An earlier run comes back unless the new one gets going, and what changed between two parts of a run is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import read_run
from draft_core.runs import replacement
from draft_core.runs.folder import LOCK
from draft_core.runs.replacement import bring_back, let_go, put_aside
from draft_core.runs.run import RunResult, run_recipe
from tests.support.runs import without_pages
from tests.support.tiny import GOOD, Redness

RECIPE = {
    **GOOD,
    "method": {"kind": "draft-k", "k": 1},
    "train": {"steps": 2, "batch_size": 2},
    "evaluation": {"prompts": ["a bird", "a fish", "a fox"], "count": 3, "scales": []},
}


@pytest.fixture
def train(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs of two small updates in `tmp_path / "run"`; `run.notes` has what they said."""
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    notes: list[str] = []

    def run(*overrides: str, data: Mapping[str, Any] = RECIPE, **how: bool) -> RunResult:
        def progress(stage: str, done: int, total: int, note: str) -> None:
            if stage == "note":
                notes.append(note)

        recipe = load_recipe({**data, "output": str(tmp_path / "run")}, overrides, catalog=catalog)
        return run_recipe(recipe, catalog, progress=progress, **how)

    run.notes = notes  # type: ignore[attr-defined]
    return run


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder, with its bytes and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# An earlier run


class Fails(Redness):
    """Redness that fails in the first update after an evaluation."""

    evaluated = False

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        self.evaluated |= not images.requires_grad
        if images.requires_grad and self.evaluated:
            raise RuntimeError("no gradient today")
        return super().forward(images, prompts)


class FailsEvaluated(Redness):
    """Redness that fails in the first evaluation."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if not images.requires_grad:
            raise RuntimeError("no score today")
        return super().forward(images, prompts)


@pytest.mark.parametrize("stage", ["evaluation", "update", "method"])
def test_a_run_comes_back_when_the_one_that_was_to_replace_it_cannot_evaluate_or_train(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    train()
    before = contents(tmp_path / "run")
    overrides, sentence = [], "no score today"
    if stage == "evaluation":
        monkeypatch.setattr("tests.support.tiny.Redness", FailsEvaluated)
    if stage == "method":  # whose short prefix this scheduler's last step cannot do without
        method, scheduler = "{kind: short-prefix, prefix_steps: 1}", "{name: PNDMScheduler}"
        overrides, sentence = (
            [f"method={method}", f"model.scheduler={scheduler}"],
            "StableDiffusionPipeline: its call raised ValueError",
        )
    if stage == "update":
        monkeypatch.setattr("tests.support.tiny.Redness", Fails)
        sentence = "no gradient today"
    with pytest.raises(DraftError, match=sentence):
        train(*overrides, overwrite=True)
    assert contents(tmp_path / "run") == before
    assert read_run(tmp_path / "run").last.update == 2


def test_a_run_is_replaced_once_the_new_one_has_trained(train: Any, tmp_path: Path) -> None:
    train()
    (tmp_path / "run" / "mine.txt").write_text("of the earlier run")
    train("train.seed=1", "train.steps=1", overwrite=True)
    assert read_run(tmp_path / "run").last.update == 1
    assert not (tmp_path / "run" / "mine.txt").exists()
    assert not list((tmp_path / "run").glob(".replac*"))


class Killed(BaseException):
    """A kill, as far as the code under test can tell."""


def test_a_kill_at_any_moment_loses_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of the renamings and deletions, also those of bringing it back."""
    real = {Path: {name: getattr(Path, name) for name in ("rename", "unlink", "mkdir", "rmdir")}}
    left = [10**9]

    def killing(name: str) -> Any:
        def do(path: Path, *args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real[Path][name](path, *args, **kwargs)

        return do

    for name in real[Path]:
        monkeypatch.setattr(Path, name, killing(name))
    moments = 0
    for moment in range(100):
        folder = tmp_path / str(moment)
        for path in (folder / "lora" / "a.txt", folder / "recipe.yaml", folder / LOCK):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
        before = contents(folder)
        left[0] = moment
        try:
            put_aside(folder, staying=[LOCK])
            (folder / "recipe.yaml").write_text("new")
            (folder / "images").mkdir()
            bring_back(folder, staying=[LOCK])
            over = True
        except Killed:
            over, moments = False, moments + 1
        left[0] = 10**9
        bring_back(folder, staying=[LOCK])
        assert contents(folder) == before
        assert {path.name for path in folder.iterdir()} == {"lora", "recipe.yaml", LOCK}
        if over:
            break
    assert moments > 8


def test_what_was_let_go_does_not_come_back_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.txt").write_text("old")
    put_aside(tmp_path, staying=[])
    (tmp_path / "new.txt").write_text("new")
    with monkeypatch.context() as patch:
        patch.setattr(replacement.shutil, "rmtree", lambda *args, **kwargs: None)  # killed before it
        let_go(tmp_path)
    bring_back(tmp_path, staying=[])
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def test_a_first_run_that_failed_does_not_block_the_corrected_recipe(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tests.support.tiny.Redness", Fails)
        with pytest.raises(DraftError, match="no gradient today"):
            train()
    with pytest.raises(CheckpointError, match="the run there has saved nothing yet; leave out --resume"):
        train("train.learning_rate=1e-3", resume=True)
    result = train("train.learning_rate=1e-3")
    assert result.after.update == 2
    assert f"the run in {tmp_path / 'run'} had saved nothing yet, and is replaced" in train.notes
    with pytest.raises(RecipeError, match=r"train\.learning_rate: 0\.001 -> 0\.002"):
        train("train.learning_rate=2e-3")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_where_nothing_can_be_written_is_found_before_the_model(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.build", None)
    recipe = load_recipe(RECIPE, ["output=/proc/x/y"], catalog=catalog)
    with pytest.raises(RecipeError) as caught:
        run_recipe(recipe, catalog)
    assert str(caught.value).startswith("output /proc/x/y: /proc is not writable (")
    assert "what was saved" not in str(caught.value)


def test_trying_a_place_leaves_nothing_behind(train: Any, tmp_path: Path) -> None:
    with pytest.raises(DraftError):
        train("model.call={negative_prompt: 3}", f"output={tmp_path / 'a' / 'b'}")
    assert not (tmp_path / "a").exists()


# What a recipe stands for


@pytest.fixture
def lists(tmp_path: Path) -> Iterator[Any]:
    """A recipe whose prompt lists are files, which `write` changes."""

    def write(prompts: str, heldout: str) -> None:
        (tmp_path / "prompts.txt").write_text(prompts)
        (tmp_path / "heldout.txt").write_text(heldout)

    write.recipe = {  # type: ignore[attr-defined]
        **RECIPE,
        "prompts": str(tmp_path / "prompts.txt"),
        "evaluation": {"prompts": str(tmp_path / "heldout.txt"), "scales": []},
    }
    return write


@pytest.mark.parametrize(
    ("prompts", "heldout", "sentence"),
    [
        ("a cat\na cow\n", "a bird\na fish\n", "prompts: 2 -> 2 texts, number 2 was 'a dog' and is 'a cow'"),
        (
            "a cat\na dog\n",
            "a bird\na fish\na fox\n",
            "evaluation.prompts: 2 -> 3 texts, number 3 was None and is 'a fox'",
        ),
    ],
)
def test_a_prompt_list_that_changed_between_two_parts_of_a_run_is_noticed(
    train: Any, lists: Any, tmp_path: Path, prompts: str, heldout: str, sentence: str
) -> None:
    lists("a cat\na dog\n", "a bird\na fish\n")
    train(data=lists.recipe)
    assert json.loads((tmp_path / "run" / "prompts.json").read_text()) == {
        "prompts": ["a cat", "a dog"],
        "evaluation.prompts": ["a bird", "a fish"],
    }
    lists(prompts, heldout)
    with pytest.raises(RecipeError) as caught:
        train("train.steps=3", data=lists.recipe, resume=True)
    assert sentence in str(caught.value)
    assert "continue it all the same with --resume --force" in str(caught.value)
    result = train("train.steps=3", data=lists.recipe, resume=True, force=True)
    evaluated = heldout.splitlines()
    assert result.before.prompts == result.after.prompts == len(evaluated)
    assert len(list((tmp_path / "run" / "images" / "000000").glob("*.png"))) == 2 * len(evaluated)
    assert read_run(tmp_path / "run").facts.prompts == evaluated
    assert any("drawn anew" in note for note in train.notes) == (len(evaluated) == 3)


@pytest.mark.parametrize("override", ["evaluation.count=2", "metrics=[{kind: brightness}]", "model.guidance_scale=2.0"])
def test_evaluations_are_drawn_anew_where_those_so_far_cannot_be_compared(
    train: Any, tmp_path: Path, override: str
) -> None:
    train()
    result = train(override, "train.steps=3", resume=True, force=True)
    record = read_run(tmp_path / "run")
    assert [evaluation.update for evaluation in record.evaluations] == [0, 3]
    assert result.before.prompts == result.after.prompts == (2 if "count" in override else 3)
    assert set(result.before.scores) == {"redness", *(["brightness"] if "metrics" in override else [])}
    assert max(result.before.drift) < 1 / 255, "the base model's images are of the settings that hold now"


def test_evaluations_stay_where_they_can_be_compared(train: Any, tmp_path: Path) -> None:
    train()
    train("train.learning_rate=1e-3", "train.steps=3", "evaluation.tolerance=3", resume=True, force=True)
    assert [evaluation.update for evaluation in read_run(tmp_path / "run").evaluations] == [0, 2, 3]


def test_more_updates_are_another_run_only_where_the_rate_cools_down(train: Any) -> None:
    train("train.cooldown_steps=1")
    with pytest.raises(
        RecipeError, match=r"another recipe, other prompts or other versions: train.steps: 2 -> 3 \(the last"
    ):
        train("train.cooldown_steps=1", "train.steps=3", resume=True)
    train("train.cooldown_steps=1", resume=True)


# Several images of a prompt


def test_a_run_with_several_images_of_a_prompt(train: Any, tmp_path: Path) -> None:
    result = train("model.call={num_images_per_prompt: 2}")
    facts = read_run(tmp_path / "run").facts
    assert len(result.after.drift) == 3 * 2, "an image for each held-out prompt and seed"
    assert facts.images_per_update == 4
    assert facts.call["num_images_per_prompt"] == 1, "as the images of the page were made"


def test_a_run_that_finished_while_this_one_loaded_its_model_stays(
    catalog: Catalog, train: Any, tmp_path: Path
) -> None:
    def recipe(steps: int) -> Any:
        return load_recipe({**RECIPE, "output": str(tmp_path / "run")}, [f"train.steps={steps}"], catalog=catalog)

    kept: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == ("load", 0) and not kept:
            kept["now"] = None
            run_recipe(recipe(1), catalog)
            kept.update(contents(tmp_path / "run"))
            kept.pop("now")

    with pytest.raises(RecipeError, match="the folder holds a finished run already"):
        run_recipe(recipe(2), catalog, progress=progress)
    assert contents(tmp_path / "run") == kept
