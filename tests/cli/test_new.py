"""`draft new-...` asks in a terminal what the plugin is, takes options elsewhere, and refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from draft_core.cli import new
from draft_core.cli.app import app
from draft_core.publishing.methods import method_project
from draft_core.publishing.projects import Owner
from draft_core.publishing.rewards import RewardTraits, reward_project


def run(*words: str, answers: str | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=answers)


def written(folder: Path) -> dict[str, str]:
    """Path inside the folder -> content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who is asked."""
    monkeypatch.setattr(new, "is_terminal", lambda: True)


def test_the_answers_make_the_project(tmp_path: Path, terminal: None) -> None:
    folder = tmp_path / "new"
    result = run("new-reward", "fits", "-o", str(folder), answers="image\nprompt\ny\ny\nCC0\nMIT\nAnn\n")
    assert result.exit_code == 0, result.output
    traits = RewardTraits(reads="prompt", weights=True, port=True, weights_license="CC0")
    assert written(folder) == reward_project("fits", traits, Owner(license="MIT", author="Ann"))
    assert "draft rewards check fits --release" in result.output


def test_what_is_given_is_not_asked_for(tmp_path: Path, terminal: None) -> None:
    folder = tmp_path / "new"
    given = ("--takes", "video", "--reads", "columns", "--no-weights", "--license", "none", "--author", "Ann")
    result = run("new-reward", "fits", "-o", str(folder), *given, answers="")
    assert result.exit_code == 0, result.output  # of videos there are no ports, so that is not asked either
    assert written(folder) == reward_project(
        "fits", RewardTraits(takes="video", reads="columns"), Owner(license="none", author="Ann")
    )


def test_an_empty_answer_takes_what_is_proposed(tmp_path: Path, terminal: None) -> None:
    result = run("new-method", "mine", "-o", str(tmp_path / "new"), answers="\n\n\n")
    assert result.exit_code == 0, result.output
    assert written(tmp_path / "new") == method_project("mine")


def test_nobody_is_asked_elsewhere(tmp_path: Path) -> None:
    assert run("new-reward", "warm", "-o", str(tmp_path / "reward")).exit_code == 0
    assert written(tmp_path / "reward") == reward_project("warm")
    assert run("new-method", "mine", "--learner", "-o", str(tmp_path / "method")).exit_code == 0
    assert written(tmp_path / "method") == method_project("mine", learner=True)


def test_yes_asks_nothing_in_a_terminal(tmp_path: Path, terminal: None) -> None:
    assert run("new-reward", "warm", "--yes", "-o", str(tmp_path / "new"), answers="").exit_code == 0
    assert written(tmp_path / "new") == reward_project("warm")


def test_a_model_and_its_files_are_copied(tmp_path: Path) -> None:
    model, prompts = tmp_path / "model", tmp_path / "mine.txt"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text("{}", encoding="utf-8")
    (model / "unet" / "weights.safetensors").write_bytes(b"weights")
    prompts.write_text("a cat\n\na dog\na cat\n", encoding="utf-8")
    words = ("--base", str(model), "--prompts", str(prompts), "--weights-license", "CC-BY-4.0")
    result = run("new-model", "mine", *words, "-o", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    source = tmp_path / "new" / "src" / "draft_model_mine"
    assert (source / "model" / "unet" / "weights.safetensors").read_bytes() == b"weights"
    assert (source / "prompts.txt").read_text(encoding="utf-8") == "a cat\na dog\n"
    assert 'license="CC-BY-4.0"' in (source / "__init__.py").read_text(encoding="utf-8")


def test_a_file_that_an_index_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.publishing.models.MOST_MEGABYTES", 1e-6)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}", encoding="utf-8")
    result = run("new-model", "mine", "--base", str(tmp_path / "model"), "-o", str(tmp_path / "new"))
    assert "model_index.json has 0 MB; ask the index for room first" in result.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("new-reward Warm", "'Warm' cannot name a reward"),
        ("new-reward warm --takes video --port", "so a reward of videos cannot name one"),
        ("new-reward warm --weights-license MIT", "it loads no weights; give --weights too"),
        ("new-method Mine", "'Mine' cannot name a method"),
        ("new-model mine", "there is no model to name; give a folder in diffusers' format"),
        ("new-model mine --base nothing/here/at-all", "unknown model"),
        ("new-model mine --base . --prompts nothing.txt", "nothing.txt: it cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words.split())
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
