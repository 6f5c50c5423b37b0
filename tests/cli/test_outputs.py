"""What cannot be written is one sentence, and is found before the work where the work takes time."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import sample as cli_sample
from draft_core.cli.outputs import require_file
from draft_core.errors import DraftError
from draft_core.reporting.run_record import read_run
from tests.support.runs import made_run, saved_lora

Draft = Callable[..., tuple[int, str]]


@pytest.fixture
def draft(catalog: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Draft:
    """Runs `draft` in a folder with the file `taken`, the folder `folder` and the LoRA `lora`; exit code and output."""
    for module in (cli, cli_sample):
        monkeypatch.setattr(module, "load_catalog", lambda: catalog)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder").mkdir()
    saved_lora(tmp_path / "lora")

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("sample tiny -p x -o taken/x.png", "File exists"),
        ("sample tiny -p x -o folder.png", "Is a directory"),
        ("sample tiny -p x -o /proc/x.png", "No such file or directory"),
        (f"sample tiny -p x -o {'x' * 300}.png", "File name too long"),
        ("mix lora:1 -o taken/x", "Not a directory"),
        ("mix lora:1 -o /proc/x", "No such file or directory"),
        ("export lora -o taken/x.safetensors", "File exists"),
        ("export lora -o folder.safetensors", "Is a directory"),
        ("new-reward warm -o taken/x", "Not a directory"),
        ("new-reward warm -o /proc/x", "No such file or directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence(
    draft: Draft, monkeypatch: pytest.MonkeyPatch, words: str, reason: str
) -> None:
    monkeypatch.setattr("draft_core.runs.sample.sample", lambda *a, **k: pytest.fail("it sampled first"))
    for name in ("folder.png", "folder.safetensors"):
        Path(name).mkdir()
    code, text = draft(*words.split())
    assert code == 2
    assert re.search(rf": it cannot be written \(.*{reason}", text)
    assert "name another place, or make room and see to its permissions" in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize("name", ["x", "x.xyz", "x.txt", "x.safetensors", "x.xbm"])
def test_an_ending_that_is_no_images_is_found_before_sampling(
    draft: Draft, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("draft_core.runs.sample.sample", lambda *a, **k: pytest.fail("it sampled first"))
    code, text = draft("sample", "tiny", "-p", "x", "-o", name)
    assert code == 2
    assert "names no format of images; end it in .png or .jpg" in text
    assert not Path(name).exists()


@pytest.mark.parametrize("name", ["new/x.png", "x.JPG", "x.webp"])
def test_images_of_other_formats_are_written(draft: Draft, name: str) -> None:
    code, text = draft("sample", "tiny", "-p", "x", "--images", "1", "--steps", "1", "-o", name)
    assert code == 0, text
    with Image.open(name) as grid:
        assert grid.height > 100


def test_a_page_that_cannot_be_written_is_one_sentence(draft: Draft, tmp_path: Path) -> None:
    for name in ("one", "other"):
        made_run(tmp_path / name, {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
    code, text = draft("report", "one", "other", "-o", "taken/page.html")
    assert code == 2
    assert "it cannot be written (File exists" in text
    (tmp_path / "full.html").symlink_to("/dev/full")
    code, text = draft("report", "one", "other", "-o", "full.html")
    assert code == 2
    assert "full.html: it cannot be written (No space left on device); name another place, or make room" in text
    (tmp_path / "one" / "report.html").mkdir()
    code, text = draft("report", "one")
    assert code == 2
    assert "one/report.html: it cannot be written (Is a directory)" in text
    assert read_run(tmp_path / "one").before


def test_an_output_that_means_nothing_is_refused(draft: Draft) -> None:
    code, text = draft("report", "one", "-o", "page.html")
    assert code == 2
    assert "the page of one run lies in its folder; leave it out, or name more runs" in text


def test_trying_a_file_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("mine")
    require_file(tmp_path / "old")
    require_file(tmp_path / "made" / "new")
    assert (tmp_path / "old").read_text() == "mine"
    assert list((tmp_path / "made").iterdir()) == []
    with pytest.raises(DraftError, match="it cannot be written"):
        require_file(tmp_path / "old" / "new")
