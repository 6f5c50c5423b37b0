"""A bug report tells versions, recipe, metrics and the last error, and nothing of the machine."""

from __future__ import annotations

import getpass
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core.bug_reports import bug_report as module
from draft_core.bug_reports.anonymous import Machine, this_machine
from draft_core.bug_reports.bug_report import bug_report
from draft_core.errors import DraftError, Interrupted
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import BrokenPlugin, Catalog, Distribution, Entry, Plugin
from draft_core.registry.specs import RewardSpec
from draft_core.reporting.live import LivePage
from tests.support.tiny import RednessConfig

ANNA = Machine(
    names={"anna": "<user>", "annas-laptop": "<machine>"},
    secrets=("correct-horse",),
    sources={"/home/anna/my env/lib": "<packages>", "/home/anna/src/draft_core": "<packages>/draft_core"},
    folders=("/home/anna/My Runs", "/home/anna"),
)


@pytest.mark.parametrize(
    ("text", "told"),
    {
        "/home/anna/x.png: no such file": "<path>: no such file",
        "runs in /home/anna/My Runs/one.": "runs in <path>.",
        "prompts '/data/all of it/a.txt' has": "prompts '<path>' has",
        'File "/home/anna/my env/lib/torch/nn/a.py", line 3': 'File "<packages>/torch/nn/a.py", line 3',
        'File "/home/anna/src/draft_core/plan.py", line 3': 'File "<packages>/draft_core/plan.py", line 3',
        "/opt/v/lib/python3.11/site-packages/peft/x.py:7": "<packages>/peft/x.py:7",
        r"C:\Users\Anna\x.png is gone": "<path> is gone",
        r"D:/data/x.png, \\server\share\y": "<path>, <path>",
        "~/models/x and ~bob/y": "<path> and <path>",
        "file:///home/anna/runs/report.html (from": "<path> (from",
        "pretrained:/srv/x": "pretrained:<path>",
        "asked by ANNA on annas-laptop": "asked by <user> on <machine>",
        "a token hf_abcdefghijklmnopqrstu": "a token <secret>",
        "ssh://anna:pw@host/x": "ssh://<secret>@host/x",
        "password correct-horse": "password <secret>",
    }.items(),
)
def test_what_tells_of_the_machine_is_replaced(text: str, told: str) -> None:
    assert ANNA.text(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a/b.png",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "hf://owner/name/file.safetensors",
        "../models/x.safetensors and ./y",
        "1/2 or 3 / 4; and/or",
        "annabel, joanna",
        "steps: 50 (30 %)",
    ],
)
def test_what_tells_nothing_of_the_machine_stays(text: str) -> None:
    assert ANNA.text(text) == text


def test_a_value_that_is_a_path_goes_whole_blanks_and_all() -> None:
    value = {"prompts": "/data/my own/list of them.txt", "model": ["a/b", r"C:\My Files\x", "~"], "steps": 3}
    assert ANNA.value(value) == {"prompts": "<path>", "model": ["a/b", "<path>", "<path>"], "steps": 3}


def test_this_machine_knows_its_user_and_its_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "marguerite")
    monkeypatch.setenv("SOME_TOKEN", "squeamish-ossifrage")
    monkeypatch.setenv("HARMLESS", "plain-and-simple")
    text = f"marguerite sent squeamish-ossifrage and plain-and-simple from {tmp_path}/a"
    assert this_machine().text(text) == "<user> sent <secret> and plain-and-simple from <path>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that failed, in the home folder of somebody."""
    home = tmp_path / "home of somebody"
    monkeypatch.setattr(Path, "home", lambda: home)
    folder = home / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        f"model:\n  pretrained: {home}/models/mine\n  note: it was {home}/old once\nprompts: [a cat, 'a ```dog```']\n"
        "train: {steps: 4}\n",
        encoding="utf-8",
    )
    (folder / "metrics.jsonl").write_text(
        "".join(f'{{"update": {update}, "loss": 0.5}}\n' for update in range(1, 6)), encoding="utf-8"
    )
    page = LivePage(folder, 4, write=lambda *_: folder, say=lambda _: None, may_write=lambda: True)
    with pytest.raises(ValueError, match="lost"), page.open():
        raise ValueError(f"the file {home}/models/mine/x.safetensors is lost")
    return folder


def plugins(**changes: Any) -> Catalog:
    """A plugin whose code loads, unless changed, and one that is broken."""
    words = {"summary": "s", "unit": "u", "code_license": "MIT", "config": RednessConfig}
    spec = RewardSpec(kind="redness", factory="tests.support.tiny:Redness", **words)  # type: ignore[arg-type]
    good, bad = Distribution("draft-good", "1.2"), Distribution("draft-bad", "3.4")
    return Catalog(
        rewards={"redness": Entry(replace(spec, **changes), good)},
        plugins=(Plugin("good = draft_good", good, "/srv/lib/draft_good/__init__.py", ("redness",), ()),),
        broken=(BrokenPlugin("bad = draft_bad", bad, "ImportError: no /home/anna/lib.so | really"),),
    )


def test_a_report_has_versions_plugins_recipe_metrics_and_error_and_no_path(run: Path, tmp_path: Path) -> None:
    text = bug_report(plugins(), run)
    assert str(tmp_path) not in text
    assert "home of somebody" not in text
    for fact in (
        f"| torch | {torch.__version__.partition('+')[0]}",
        f"| python | {sys.version.split()[0]} ",
        "| device | CPU",
        "| draft-good 1.2 | loads |",
        "| draft-bad 3.4 | broken: ImportError: no <path> \\| really |",
        "ValueError: the file <path> is lost",
        "reporting/live.py",
    ):
        assert fact in text
    metrics = [line for line in text.splitlines() if line.startswith('{"update"')]
    assert metrics == [f'{{"update": {update}, "loss": 0.5}}' for update in (3, 4, 5)]


def test_the_recipe_is_yaml_with_placeholders_in_a_fence_that_it_does_not_close(run: Path) -> None:
    text = bug_report(Catalog(), run)
    (fence, recipe) = re.findall(r"(?ms)^(`{4,})yaml\n(.*?)^\1$", text)[0]
    assert fence == "````"
    assert parse_yaml(recipe) == {
        "model": {"pretrained": "<path>", "note": "it was <path> once"},
        "prompts": ["a cat", "a ```dog```"],
        "train": {"steps": 4},
    }


def test_a_plugin_whose_code_does_not_load_is_said_to(run: Path) -> None:
    text = bug_report(plugins(factory="draft_nowhere.reward:Lost"), run)
    assert re.search(r"\| draft-good 1\.2 \| does not load: .*draft_nowhere", text)


def test_without_a_run_there_is_the_table_alone() -> None:
    text = bug_report(Catalog())
    assert "Recipe" not in text
    assert all(line.startswith("|") for line in text.splitlines())


def test_a_recipe_that_is_no_yaml_is_told_as_it_stands(run: Path) -> None:
    (run / "recipe.yaml").write_text("model: [\nwhere: '/srv/my own/x'\n", encoding="utf-8")
    text = bug_report(Catalog(), run)
    assert "# it is not plain YAML" in text
    assert "where: '<path>'" in text


def test_a_library_that_is_missing_or_broken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIBRARIES", ("draft-of-nothing",))
    monkeypatch.setitem(sys.modules, "torch", None)
    text = bug_report(Catalog())
    assert "| draft-of-nothing | not installed |" in text
    assert "| device | torch does not load: " in text


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"it holds no run, recipe.yaml cannot be read .*; name the folder of a run"):
        bug_report(Catalog(), tmp_path)


def test_an_interruption_is_no_error(tmp_path: Path) -> None:
    page = LivePage(tmp_path, 4, write=lambda *_: tmp_path, say=lambda _: None, may_write=lambda: True)
    with pytest.raises(Interrupted), page.open():
        raise Interrupted("stopped")
    assert not (tmp_path / "error.txt").exists()


def test_the_command_prints_or_writes_it_and_refuses_what_does_not_go_with_it(draft: Any, run: Path) -> None:
    code, text = draft("report", "--bug", str(run))
    assert code == 0
    assert "**Last error**" in text
    code, told = draft("report", "--bug", str(run), "--output", "bug.md")
    assert code == 0, told
    assert "**Last error**" in Path("bug.md").read_text(encoding="utf-8")
    for words, sentence in {
        ("--against", "jpeg-demo"): "--bug and --against contradict each other",
        ("--curves",): "--bug and --curves contradict each other",
        (str(run),): "--bug is about one run",
    }.items():
        code, text = draft("report", "--bug", str(run), *words)
        assert (code, sentence in text) == (2, True), text
