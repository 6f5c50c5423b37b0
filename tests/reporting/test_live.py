"""The page of a run under way: there from the first evaluation on, renewed, and never the end of a run."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draft_core.errors import CheckpointError, Interrupted
from draft_core.recipe.load import load_recipe
from draft_core.reporting import live
from draft_core.reporting.live import LivePage, RunState
from draft_core.reporting.page import page_of, write_report
from draft_core.reporting.run_record import FACTS, RunRecord
from draft_core.reporting.summary import summarize
from draft_core.runs.run import run_recipe
from tests.reporting.test_page import Page, words
from tests.support.runs import made_run
from tests.support.thorough import some
from tests.support.tiny import GOOD

pytestmark = pytest.mark.usefixtures("blank_curves")
FINE = {"jpeg": [1, 2, 3], "clip": [0.5, 0.5, 0.5]}


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return made_run(tmp_path / "run", FINE, trained={"jpeg": 1.0}, facts={"scales": []})


def begun(record: RunRecord, evaluations: int) -> RunRecord:
    """The run when it had made so many evaluations, with no LoRA yet."""
    shutil.rmtree(record.folder / "lora", ignore_errors=True)
    kept = record.evaluations[:evaluations]
    reports = [report for report in record.reports if report.update <= kept[-1].update]
    return RunRecord(record.folder, record.facts, record.recipe_yaml, reports, kept)


def page_for(record: RunRecord, said: list[str], write: Any = write_report) -> LivePage:
    return LivePage(record.folder, 20, write=write, say=said.append, may_write=lambda: True)


def test_it_is_there_after_the_base_models_evaluation_and_says_nothing_that_is_not_known(record: RunRecord) -> None:
    said: list[str] = []
    page_for(record, said).renew(lambda: begun(record, 1), 0)
    html = (record.folder / "report.html").read_text()
    text = words(html)
    assert said == []
    assert Page(html).open == []
    assert Page(html).outside == []
    assert "Update 0 of 20." in text
    assert "No update is evaluated yet These are the base model's images." in text
    assert "left." not in text, "no update has been timed"
    for later in ("Use it", "in percent", "Curves of the training", "nan", " s an update"):
        assert later not in text, later


def test_an_evaluation_renews_it_with_verdict_and_time_left(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 100.0, 100.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    page = page_for(record, [])
    page.news = 0.0
    page.renew(lambda: begun(record, 1), 0)
    page.renew(lambda: begun(record, 2), 10)
    text = words((record.folder / "report.html").read_text())
    assert "Update 10 of 20. About 1 min 40 s left." in text, "ten updates took 100 s"
    assert "After update 10: " in text
    assert "jpeg rose from" in text
    assert "is being trained" in text
    assert "lora/" not in text, "there is none yet"
    assert not (record.folder / "report.html.partial").exists()


def test_between_evaluations_the_state_alone_is_written(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "BETWEEN", 0.0)
    calls: list[int] = []

    def write(record: RunRecord, state: RunState | None) -> Path:
        calls.append(1)
        return write_report(record, state)

    page = page_for(record, [], write)
    page.tick("train", 1, 20)
    assert not (record.folder / "report.html").exists(), "not before the first evaluation"
    page.renew(lambda: begun(record, 1), 0)
    before = (record.folder / "report.html").read_text()
    page.tick("train", 7, 20)
    after = (record.folder / "report.html").read_text()
    assert "Update 7 of 20." in words(after)
    state = re.compile(f"{live.BEGIN}.*{live.END}", flags=re.DOTALL)
    assert state.sub("", before) == state.sub("", after)
    page.tick("evaluate 10", 3, 8)
    assert "Update 7 of 20: evaluate 10, 3 of 8 images." in words((record.folder / "report.html").read_text())
    assert len(calls) == 1
    monkeypatch.setattr(live, "BETWEEN", 60.0)
    page.tick("train", 8, 20)
    assert "Update 7 of 20" in words((record.folder / "report.html").read_text()), "a moment ago"


@pytest.mark.parametrize("error", [Interrupted("interrupted after update 8", next="go on"), KeyError("x")])
def test_a_run_that_ends_early_says_so_and_its_page_loads_itself_no_more(record: RunRecord, error: Exception) -> None:
    page = page_for(record, [])

    def run() -> None:
        with page.open():
            page.renew(lambda: begun(record, 1), 0)
            page.tick("train", 8, 20)
            raise error

    with pytest.raises(type(error)):
        run()
    html = (record.folder / "report.html").read_text()
    assert "Ended after update 8 of 20: " in words(html)
    assert ("interrupted after update 8; go on" if isinstance(error, Interrupted) else "KeyError: 'x'") in Page(
        html
    ).text
    assert "reload" not in html
    assert "reload" in RunState(1, 2).html()


def test_nothing_of_it_ends_a_run_and_it_is_said_once(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def full(record: RunRecord, state: RunState | None) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    page = page_for(record, said, full)
    for update in (0, 10):
        page.renew(lambda: record, update)
    page.tick("train", 11, 20)
    assert page.finish(record) == record.folder / "report.html"
    assert len(said) == 2
    assert said[0] == "the page cannot be written ([Errno 28] No space left on device); the run goes on without it"
    assert said[1].startswith("`draft report ")


def test_a_folder_that_is_no_longer_the_runs_is_not_written(record: RunRecord) -> None:
    page = LivePage(record.folder, 20, write=write_report, say=lambda text: None, may_write=lambda: False)
    page.renew(lambda: record, 0)
    assert not (record.folder / "report.html").exists()


# In a run


def run(
    catalog: Any, output: Path, progress: Callable[[str, int, int, str], None], *overrides: str, **how: bool
) -> None:
    data = {
        **GOOD,
        "model": {"pretrained": "tiny", "num_inference_steps": 2, "lora": {"rank": 2}},
        "method": {"kind": "draft-k"},
        "train": {"steps": 2, "batch_size": 1},
        "evaluation": {"prompts": "tiny-heldout", "every": 1, "tolerance": 99, "scales": []},
        "device": "cpu",
        "output": str(output),
    }
    run_recipe(load_recipe(data, overrides, catalog=catalog), catalog, progress=progress, **how)


def test_a_run_has_its_page_from_the_first_evaluation_on_and_a_resumed_one_again(catalog: Any, tmp_path: Path) -> None:
    page = tmp_path / "run" / "report.html"
    seen: list[str] = []
    notes: list[str] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train":
            seen.append(words(page.read_text()))
        if stage == "note":
            notes.append(note)

    run(catalog, tmp_path / "run", progress)
    assert f"page: {page.as_uri()} (from the first evaluation on)" in notes
    assert ["Update 0 of 2" in seen[0], "Update 1 of 2" in seen[1]] == [True, True]
    assert "reload" not in page.read_text(), "the finished page stays as it is"
    seen.clear()
    run(catalog, tmp_path / "run", progress, "train.steps=3", resume=True)
    assert "Update 2 of 3" in seen[0]
    assert "Use it" in page.read_text()


def test_a_page_that_cannot_be_written_costs_the_page_alone(
    catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Path:
        raise CheckpointError("there are no images in it", where="somewhere", next="do this")

    monkeypatch.setattr("draft_core.runs.run.write_report", full)
    notes: list[str] = []
    run(catalog, tmp_path / "run", lambda stage, done, total, note: notes.append(note))
    assert json.loads((tmp_path / "run" / FACTS).read_text())["seconds"] > 0, "the run is finished"
    assert sum("the page cannot be written" in note for note in notes) == 1


# In a browser

BROWSER = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


def browse(address: str, profile: Path, width: int, milliseconds: int) -> str:
    """What a browser makes of a page after so long, as HTML."""
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", f"--window-size={width},900", "--enable-logging=stderr", "--v=0"),
            *(f"--virtual-time-budget={milliseconds}", "--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def probed(page: Path) -> None:
    """Lets the page write down how wide it is."""
    probe = "<script>onload = () => { document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth }"
    page.write_text(page.read_text().replace("</body>", probe + "</script></body>"))


AGES = {
    f"{name}{', narrow' if width < 400 else ''}": (age, width)
    for name, age in {"fresh": 0, "silent": 1800, "over": 90000}.items()
    for width in (1280, 390)
}


@BROWSER
@pytest.mark.parametrize(("age", "width"), some(AGES, "fresh", "silent, narrow", "over").values())
def test_a_browser_shows_how_old_it_is(record: RunRecord, tmp_path: Path, age: int, width: int) -> None:
    state = RunState(10, 20, "evaluate 10, 3 of 8 images", 100.0, time.time() - age)
    page = record.folder / "report.html"
    page.write_text(page_of(summarize(begun(record, 2)), state))
    probed(page)
    html = browse(page.as_uri(), tmp_path / "profile", width, 1500)
    shown = words(html)
    assert 'data-wide="0"' in html
    assert ("the run was stopped or killed" in shown) == (age > 0)
    assert ("no longer loads itself again" in shown) == (age > 3600)
    assert {0: " s ago", 1800: "30 min ago", 90000: "25 h ago"}[age] in shown


@BROWSER
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_browser_loads_it_again_where_it_was_while_the_run_goes_on(
    record: RunRecord, tmp_path: Path, goes_on: bool
) -> None:
    page = record.folder / "report.html"
    state = RunState(10, 20, written=time.time(), ended="" if goes_on else "it was stopped")
    probe = (
        "<script>const loads = 1 + Number(sessionStorage.getItem('loads')); sessionStorage.setItem('loads', loads);"
        "document.body.dataset.loads = loads; addEventListener('load', () => { if (loads === 1) scrollTo(0, 321);"
        "setTimeout(() => { document.body.dataset.at = scrollY }, 100) })</script></body>"
    )
    page.write_text(page_of(summarize(begun(record, 2)), state).replace("</body>", probe))
    html = browse(page.as_uri(), tmp_path / "profile", 1280, 20_000)
    loads, at = (int(re.findall(rf'data-{name}="(\d+)"', html)[0]) for name in ("loads", "at"))
    assert (loads > 1) == goes_on
    assert at == 321
