"""The page of a run and its card: what they say, what they show, and that a browser agrees."""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from draft_core.errors import DraftError
from draft_core.evaluation.collapse import Change
from draft_core.learners.surrogate_learner import AGREEMENT, TEACHER
from draft_core.recipe.load import load_recipe
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.reporting.card import usage
from draft_core.reporting.comparison import write_comparison
from draft_core.reporting.curves import Panel, svg, training_line, training_panels
from draft_core.reporting.image_grid import strip_uris
from draft_core.reporting.page import page_of, write_report
from draft_core.reporting.rendering import duration, plus_minus
from draft_core.reporting.run_record import load_images, read_run, save_videos
from draft_core.reporting.summary import summarize
from draft_core.rewards.images import read_image, to_pil
from draft_core.runs.run import run_recipe
from tests.support.runs import made_run
from tests.support.tiny import GOOD

TRAINED = {"jpeg": 1.0}
FINE = {"jpeg": [1, 2, 3], "clip": [0.5, 0.5, 0.5]}
COLLAPSED = {"jpeg": [1, 2, 3, 4], "clip": [0.5, 0.5, 0.2, 0.1]}


class Page(HTMLParser):
    """What of a page is checked: balanced tags, images, visible text, and whatever points outside."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        self.outside += [
            value for name, value in attributes if name in ("src", "href") and value and not value.startswith("data:")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += f" {data}"


def words(html: str) -> str:
    return " ".join(Page(html).text.split())


# The verdict


@pytest.mark.usefixtures("blank_curves")
@pytest.mark.parametrize(
    ("scores", "kind", "headline", "reason", "best"),
    [
        (FINE, "fine", "Fine", "no score and no measure of the images fell beyond", "after update 20: lora/"),
        ({"jpeg": [1, 2]}, "fine", "Fine", "no held-out score was there", "after update 10: lora/"),
        (FINE, "costly", "The trained reward rose, at a cost", "detail fell from", "after update 20: lora/"),
        (COLLAPSED, "collapsed", "Collapsed at update 20", "clip fell from 0.50", "after update 10: lora-best/"),
        ({"jpeg": [1, 1], "clip": [0.5, 0.1]}, "collapsed", "Collapsed", "clip fell", "No evaluation beats"),
        ({"jpeg": [2, 1], "clip": [0.5, 0.1]}, "lost", "Something was lost", "clip fell", "No evaluation beats"),
        ({"jpeg": [2, 1], "clip": [0.5, 0.5]}, "idle", "The trained reward fell", "from 2.0", "No evaluation beats"),
    ],
)
def test_the_verdict_says_what_came_of_it(
    scores: Any, kind: str, headline: str, reason: str, best: str, tmp_path: Path
) -> None:
    record = made_run(tmp_path / "run", scores, trained=TRAINED, fading=0.0 if kind == "fine" else 0.1)
    verdict = summarize(record).verdict
    assert (verdict.kind, verdict.headline[: len(headline)]) == (kind, headline)
    assert reason in " ".join([verdict.reason, *verdict.fell])
    assert best in verdict.best
    page = words(page_of(summarize(record)))
    assert all(part in page for part in (verdict.headline, *verdict.rose, *verdict.fell, verdict.reason, verdict.best))
    assert page.index(verdict.headline) < page.index("A LoRA on the model"), "the verdict is the first thing"


def test_the_verdict_names_every_score_and_measure_that_fell_with_its_percentage(tmp_path: Path) -> None:
    scores = {"jpeg": [1, 4], "alignment": [0.5, 0.4], "clip": [0.5, 0.5]}
    record = made_run(tmp_path / "run", scores, trained={"jpeg": 1.0, "alignment": 0.5}, fading=0.23)
    verdict = summarize(record).verdict
    assert verdict.kind == "costly"
    found = dict(re.findall(r"(\w+) fell from \S+ to \S+ \((\S+) %\)", "; ".join(verdict.fell)))
    rows = {row.name: row for row in summarize(record).rows}
    assert set(found) == {"alignment", "diversity", "colour", "detail"}, "clip rose"
    assert {name: float(percent) for name, percent in found.items()} == pytest.approx(
        {name: 100 * rows[name].change.mean / rows[name].before.mean for name in found}, rel=0.01
    )
    assert float(found["diversity"]) == pytest.approx(-23, abs=1)


@pytest.mark.usefixtures("blank_curves")
def test_what_updates_said_stands_on_the_page(tmp_path: Path) -> None:
    said = ["the gradient of the adapter is exactly zero"]
    record = made_run(tmp_path / "run", FINE, trained=TRAINED, report={"notes": said})
    text = words(page_of(summarize(record)))
    assert "What was said of 20 updates update 1: the gradient of the adapter is exactly zero" in text
    assert "and 15 more, in metrics.jsonl" in text


@pytest.mark.usefixtures("blank_curves")
def test_with_one_prompt_there_is_no_error_and_it_is_said(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED, prompts=["a bird"])
    assert summarize(record).verdict.headline == "One prompt tells little"
    assert "nan" not in words(page_of(summarize(record)))


@pytest.mark.usefixtures("blank_curves")
def test_of_few_prompts_nothing_is_said_to_be_beyond_chance(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED, prompts=["a bird", "a fish"])
    verdict = summarize(record).verdict
    assert (verdict.kind, verdict.headline) == ("idle", "2 prompts tell little")
    assert "2 prompts are too few to tell a change from chance: evaluate 5 or more." in verdict.reason
    page = words(page_of(summarize(record)))
    assert "By more than 2 standard errors of 2 prompts, trained or not:" in page
    assert "beyond chance" not in page.lower()


# The table


@pytest.mark.usefixtures("blank_curves")
def test_rows_carry_means_and_standard_errors_over_prompts(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", COLLAPSED, trained=TRAINED)
    table = {row.name: row for row in summarize(record).rows}
    assert list(table) == ["jpeg", "clip", "diversity", "drift", "colour", "detail"]
    assert [row.role for row in table.values()] == ["trained", "held out", *["images"] * 4]
    first, last = (
        torch.tensor(evaluation.scores["clip"]).view(5, 2).mean(1) for evaluation in (record.before, record.last)
    )
    row = table["clip"]
    assert row.before.mean == pytest.approx(float(first.mean()))
    assert row.before.error == pytest.approx(float(first.std()) / 5**0.5, rel=1e-3)
    assert row.change.error == pytest.approx(float((last - first).std()) / 5**0.5, rel=1e-3)
    assert row.percent == pytest.approx(100 * (float(last.mean()) / float(first.mean()) - 1))
    assert table["drift"].before.mean == 0
    assert f"clip held out {plus_minus(row.before)}" in words(page_of(summarize(record)))


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(-1.6567, 0.0371, "-1.657 ± 0.037"), (250.4, 12.0, "250 ± 12"), (0.5, float("nan"), "0.5"), (2.0, 0.0, "2")],
)
def test_a_mean_is_given_to_the_digits_of_its_error(mean: float, error: float, text: str) -> None:
    assert plus_minus(Change(mean, error)) == text


def test_durations() -> None:
    assert [duration(seconds) for seconds in (7.4, 155, 3725)] == ["7 s", "2 min 35 s", "1 h 2 min"]


# The page


def test_the_page_is_whole_self_contained_escaped_and_every_image_has_a_text(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", COLLAPSED, trained=TRAINED)
    (tmp_path / "run" / "lora-best").mkdir()
    shutil.copytree(tmp_path / "run" / "lora", tmp_path / "run" / "lora-best", dirs_exist_ok=True)
    html = write_report(record).read_text()
    page = Page(html)
    assert page.open == []
    assert page.outside == []
    assert all(image["alt"] for image in page.images)
    assert len(page.images) == 5 * 3 + 3 + 6 + 2  # evaluations of prompts, scales, held-out curves, training curves
    assert "<b>fish</b>" not in html
    assert "a <b>fish</b>" in page.text
    assert "lora-best" in usage(record, tmp_path / "run" / "lora-best", base="x")
    assert f"load_lora_weights('{tmp_path / 'run' / 'lora-best'}')" in page.text
    for folder in ("lora", "lora-best"):
        assert (tmp_path / "run" / folder / "before_after.png").is_file()
    assert "10 updates of 4" in (tmp_path / "run" / "lora-best" / "README.md").read_text()
    with Image.open(tmp_path / "run" / "before_after.png") as grid:  # three groups of two images
        assert grid.getpixel((grid.width - 60, 90)) != (255, 255, 255)
        assert grid.width > 6 * 136 + 2 * 24


@pytest.mark.usefixtures("blank_curves")
def test_the_command_on_the_page_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "it's my run"
    text = Page(page_of(summarize(made_run(folder, FINE, trained=TRAINED)))).text
    (command,) = re.findall("draft train .*-again\\S*", text)
    assert shlex.split(command)[2:] == [f"{folder}/recipe.yaml", "--set", f"output={folder}-again"]


@pytest.mark.usefixtures("blank_curves")
def test_images_on_the_page_are_those_of_the_files(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED)
    first = next(
        image for image in Page(page_of(summarize(record))).images if image["alt"] == "a bird, before: seeds 0, 1"
    )
    with Image.open(io.BytesIO(base64.b64decode((first["src"] or "").split(",")[1]))) as strip:
        shown = strip.crop((0, 0, 16, 16))
    assert shown.tobytes() == to_pil(load_images(tmp_path / "run", 0)[0]).tobytes()


@pytest.mark.usefixtures("blank_curves")
def test_videos_that_a_run_kept_play_on_its_page(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED)
    frames = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    count = len(record.facts.prompts) * len(record.facts.seeds)
    for update in (seen.update for seen in summarize(record).shown.values()):
        save_videos(tmp_path / "run", update, frames.expand(count, -1, -1, -1, -1))
    page = page_of(summarize(record))
    first = next(image for image in Page(page).images if image["alt"] == "a bird, before: seeds 0, 1")
    with Image.open(io.BytesIO(base64.b64decode((first["src"] or "").split(",")[1]))) as strip:
        assert (strip.format, strip.n_frames, strip.width) == ("GIF", 5, 33)


@pytest.mark.usefixtures("blank_curves")
def test_gradients_skipped_updates_and_gaps_are_told(tmp_path: Path) -> None:
    record = made_run(
        tmp_path / "run",
        {"jpeg": [1, 2], "clip": [1, 2]},
        trained={"jpeg": 1.0, "clip": 0.5},
        evaluation={"gradients": {"jpeg": 0.02, "clip": 0.04}, "cosines": {"jpeg ~ clip": -0.25}},
        report={"skipped": ("reward jpeg is NaN",), "grad_norm": float("nan")},
    )
    page = words(page_of(summarize(record)))
    assert "jpeg + 0.5 x clip" in page
    assert "cosine jpeg ~ clip -0.25" in page
    assert "10 optimiser steps were skipped" in page
    assert "update 1: reward jpeg is NaN" in page
    assert "and 5 more" in page


def test_large_images_are_reduced_until_they_fit() -> None:
    noise = torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    free = strip_uris({"a": noise}, budget=10**9)["a"]
    tight = strip_uris({"a": noise}, budget=60_000)["a"]
    assert free.startswith("data:image/jpeg")
    assert len(tight) <= 60_000 < len(free)


@pytest.mark.usefixtures("blank_curves")
@pytest.mark.parametrize("pages", ["report", "comparison"])
def test_every_image_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: str) -> None:
    records = [made_run(tmp_path / name, COLLAPSED, trained=TRAINED) for name in ("one", "other")]
    shutil.copytree(tmp_path / "one" / "lora", tmp_path / "one" / "lora-best")
    read: Counter[Path] = Counter()

    def counted(path: Path) -> torch.Tensor:
        read[path] += 1
        return read_image(path)

    monkeypatch.setattr("draft_core.reporting.run_record.read_image", counted)
    if pages == "report":
        write_report(records[0])
        shown = ("000000", "000010", "000030", "scale-0.5")
        assert {path.parent.name for path in read} == set(shown), "before, best, last and the scale; no other"
    else:
        write_comparison(records, tmp_path / "comparison.html")
    assert set(read.values()) == {1}


def test_a_long_run_has_no_longer_curves() -> None:
    reports: Any = [type("Report", (), {"update": update})() for update in range(1, 10_001)]
    line = training_line(reports, [float(number) for number in range(10_000)])
    assert len(line.updates) == len(line.values) == len(line.errors) == len(line.every) <= 500
    assert line.values[100] == pytest.approx(line.updates[100] - 1)


def test_a_run_that_went_on_with_other_rewards_has_a_curve_of_each(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", FINE, trained=TRAINED)
    reports = [replace(report, scores={"aesthetic": 5.0}) for report in made.reports[:3]]
    record = replace(made, reports=[*reports, *made.reports[3:]])
    first, second = training_panels(record)[:2]
    assert [first.title, second.title] == ["aesthetic, training batches", "jpeg, training batches"]
    assert [len(panel.lines[0].every) for panel in (first, second)] == [len(made.reports)] * 2
    assert second.lines[0].every[3:] == [report.scores["jpeg"] for report in made.reports[3:]]
    assert all(math.isnan(value) for value in [*first.lines[0].every[3:], *second.lines[0].every[:3]])
    assert svg(first)
    page = write_comparison([made_run(tmp_path / "other", FINE, trained=TRAINED), record], tmp_path / "both.html")
    texts = [str(image["alt"]) for image in Page(page.read_text()).images]
    assert any(text.startswith("Curve of aesthetic, training batches") for text in texts)


def test_a_surrogate_and_its_reward_share_a_diagram_that_names_both(tmp_path: Path) -> None:
    said = {TEACHER.format("jpeg"): -2.5, AGREEMENT.format("jpeg"): 0.75}
    record = made_run(tmp_path / "run", FINE, trained=TRAINED, report={"learner": said})
    texts = [str(image["alt"]) for image in Page(page_of(summarize(record))).images]
    (together,) = [text for text in texts if text.startswith("Curve of jpeg, training batches")]
    assert re.search(r"surrogate: from [\d.]+ to [\d.]+; the reward itself: from -2.5 to -2.5", together)
    assert any(text.startswith("Curve of jpeg rank agreement against updates, from 0.75 to 0.75") for text in texts)
    assert not any(text.startswith("Curve of jpeg itself") for text in texts)
    panel = training_panels(record)[0]
    assert [line.label for line in panel.lines] == ["surrogate", "the reward itself"]
    assert panel.lines[0].every == [report.scores["jpeg"] for report in record.reports]
    assert set(panel.lines[1].every) == {-2.5}
    assert all(f">{line.label}<".encode() in svg(panel) for line in panel.lines), "the legend"


@pytest.mark.usefixtures("blank_curves")
def test_a_run_whose_lora_is_gone_is_refused(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED)
    shutil.rmtree(tmp_path / "run" / "lora")
    with pytest.raises(DraftError, match="there is no pytorch_lora_weights"):
        write_report(record)


def test_a_curve_is_the_same_in_every_byte_and_says_in_words_what_it_shows() -> None:
    reports: Any = [type("Report", (), {"update": update})() for update in (1, 2, 3)]
    panel = Panel("jpeg", [training_line(reports, [1.0, float("nan"), 3.0])])
    assert svg(panel) == svg(panel)
    assert panel.text == "Curve of jpeg against updates, from 1 to 3"


# A run, from its recipe to what a reader does with it


@pytest.fixture(scope="module")
def trained(catalog: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    data = {
        **GOOD,
        "rewards": [{"kind": "redness"}, {"kind": "redness", "contrast": 2.0}],
        "train": {"steps": 2, "batch_size": 1, "learning_rate": 0.1},
        "evaluation": {"prompts": "tiny-heldout", "images_per_prompt": 1, "scales": [0.5, 1.0]},
        "output": str(folder),
    }
    run_recipe(load_recipe(data, catalog=catalog), catalog)
    return folder


def test_scales_lie_between_the_base_model_and_the_lora(trained: Path) -> None:
    record = read_run(trained)
    scales = summarize(record).scaled
    assert list(scales) == [0.0, 0.5, 1.0]
    torch.testing.assert_close(scales[0.0], load_images(trained, 0))
    torch.testing.assert_close(scales[1.0], load_images(trained, 2))
    assert (scales[0.5] - scales[0.0]).abs().max() > 2 / 255
    assert (scales[0.5] - scales[1.0]).abs().max() > 2 / 255


def test_the_code_on_the_page_draws_the_runs_image(trained: Path) -> None:
    code = usage(read_run(trained), trained / "lora", base=read_run(trained).facts.location)
    names: dict[str, Any] = {}
    exec(code, names)
    ours = to_pil(load_images(trained, 2)[0])
    difference = torch.tensor(list(names["image"].tobytes())).float() - torch.tensor(list(ours.tobytes())).float()
    assert difference.abs().max() <= 1


def test_the_card_is_one_that_the_hub_reads(trained: Path) -> None:
    text = (trained / "lora" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    data = parse_yaml(head)
    assert data["library_name"] == "diffusers"
    assert {"lora", "reward-redness", "reward-redness-2"} <= set(data["tags"])
    assert "base_model" not in data, "an alias of a plugin is no name on the Hub"
    assert "load_pipeline('tiny'" in body
    assert "sets no licence" in body
    record = read_run(trained)
    assert str(trained) not in body.split("## Recipe")[0]
    assert re.search(r"^\| redness \| trained \|", body, flags=re.MULTILINE)
    assert record.last.gradients.keys() == {"redness", "redness#2"}


@pytest.mark.usefixtures("blank_curves")
def test_a_card_of_a_hub_model_names_it(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained=TRAINED, model="org/model", facts={"location": "org/model"})
    write_report(record)
    text = (tmp_path / "run" / "lora" / "README.md").read_text()
    data = parse_yaml(text.split("---\n")[1])
    assert (data["base_model"], data["base_model_relation"]) == ("org/model", "adapter")
    assert "DiffusionPipeline.from_pretrained('org/model', dtype=torch.float32)" in text


# Several runs


def test_runs_are_compared_on_what_they_share(tmp_path: Path) -> None:
    one = made_run(tmp_path / "one", FINE, trained=TRAINED)
    other = made_run(
        tmp_path / "other",
        {"jpeg": [1, 3], "size": [2, 2]},
        trained=TRAINED,
        prompts=["a dog", "a horse"],
        seeds=(1, 2),
    )
    html = write_comparison([one, other], tmp_path / "comparison.html").read_text()
    page = Page(html)
    text = " ".join(page.text.split())
    assert page.open == []
    assert page.outside == []
    assert "All runs share 1 of their prompts (5 in one, 2 in other)" in text
    images = [image for image in page.images if (image["alt"] or "").startswith("a dog, ")]
    assert [image["alt"] for image in images] == ["a dog, before", "a dog, one, update 20", "a dog, other, update 10"]
    with Image.open(io.BytesIO(base64.b64decode((images[2]["src"] or "").split(",")[1]))) as strip:
        expected = to_pil(load_images(tmp_path / "other", 10)[0])
        assert strip.tobytes() == expected.tobytes(), "seed 1 is the other run's first"
    assert "-output: one" in text
    assert "+output: other" in text
    assert "size other held out" in text
    with pytest.raises(DraftError, match="named twice"):
        write_comparison([one, one], tmp_path / "twice.html")


@pytest.mark.usefixtures("blank_curves")
def test_runs_of_different_models_each_show_their_own_before(tmp_path: Path) -> None:
    one = made_run(tmp_path / "one", FINE, trained=TRAINED)
    other = made_run(tmp_path / "other", FINE, trained=TRAINED, model="org/other")
    page = Page(write_comparison([one, other], tmp_path / "comparison.html").read_text())
    assert "each run has its own images before" in page.text
    assert "a dog, other, before" in [image["alt"] for image in page.images]


# In a browser


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(width: int, tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", COLLAPSED, trained=TRAINED)
    page = write_report(record)
    probe = (
        "<script>onload = () => { document.body.dataset.state = JSON.stringify({"
        "wide: document.documentElement.scrollWidth - innerWidth,"
        "broken: [...document.images].filter(image => !image.naturalWidth).length,"
        "shown: [...document.querySelectorAll('.scales figure')].filter(figure => figure.offsetHeight).length,"
        "scale: document.querySelector('output').value}) }</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr"),
            *("--v=0", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    state = re.search(r'data-state="([^"]*)"', done.stdout)
    assert state, done.stderr
    seen = parse_yaml(state[1].replace("&quot;", '"'))
    assert seen == {"wide": 0, "broken": 0, "shown": 1, "scale": 0.5} | {"scale": "0.5"}
