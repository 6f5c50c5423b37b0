"""`draft vote`: it serves a run's images or new ones, a kill loses no answer, and what is wrong is said beforehand."""

from __future__ import annotations

import os
import re
import signal
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from draft_core.cli import vote as cli_vote
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import RunRecord
from draft_core.rewards.images import read_image
from draft_core.runs.sample import sample
from draft_core.voting.server import VoteServer
from draft_core.voting.vote_file import read_votes
from tests.support.forked import forked_command
from tests.support.runs import made_run

FINE = {"jpeg": [1, 2, 3]}
RECIPE = "model: {pretrained: tiny, num_inference_steps: 2, guidance_scale: 2.0}\nprompts: tiny-train\n"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return made_run(tmp_path / "run", FINE, trained={"jpeg": 1.0}, prompts=("a bird", "a fish"))


@contextmanager
def voting(run: Path, *words: str) -> Iterator[tuple[int, TextIO, str]]:
    """`draft vote` as a process of its own: its id, what else it prints, and the address that it prints."""
    with forked_command(["vote", str(run), *words]) as (process, printed):
        lines = iter(printed.readline, "")
        yield process, printed, next(found[1] for line in lines if (found := re.match(r"page: (http://\S+)", line)))


def answer(address: str, pair: int, side: str) -> str:
    form = urllib.parse.urlencode({"pair": pair, "answer": side}).encode()
    with urllib.request.urlopen(f"{address}vote", form, timeout=60) as page:
        return str(page.read().decode())


def test_a_server_that_is_killed_loses_no_answer_and_the_next_goes_on(record: RunRecord) -> None:
    path = record.folder / "votes.jsonl"
    with voting(record.folder, "--count", "5") as (process, _, address):
        answer(address, 0, "left")
        assert "2 of 5 pairs answered" in answer(address, 1, "right")
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    kept = read_votes(path)
    assert len(kept) == 2
    with voting(record.folder, "--count", "5") as (process, printed, address):
        assert "3 of 5 pairs answered" in answer(address, 2, "tie")
        os.kill(process, signal.SIGINT)
        said = printed.read()
        assert os.waitpid(process, 0)[1] == 0
    assert "3 of 5 pairs are answered" in said
    assert f"{path} has 3" in said
    votes = read_votes(path)
    assert votes[:2] == kept
    for vote in votes:
        assert (path.parent / vote.winner).parent.parent == record.folder / "images"
        assert (path.parent / vote.loser).is_file()


@pytest.fixture
def asked(draft: Callable[..., tuple[int, str]], catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `draft vote` with the tiny model, and answers all that it asks by `left`."""

    def answer_all(server: VoteServer, poll_interval: float = 0.5) -> None:
        while (number := server.ballot.current) is not None:
            server.ballot.answer(number, "left")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_vote, "load_catalog", lambda: catalog)
    monkeypatch.setattr(VoteServer, "serve_forever", answer_all)
    return lambda *words: draft("vote", *words)


def test_new_images_are_those_of_the_runs_lora_and_are_drawn_once(
    asked: Any, record: RunRecord, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record.folder / "recipe.yaml").write_text(RECIPE)
    code, said = asked(str(record.folder), "--samples", "3")
    assert code == 0, said
    assert "6 of 6 pairs are answered" in said
    votes = read_votes(record.folder / "votes.jsonl")
    expected = sample("tiny", ["a bird", "a fish"], lora=record.folder, images_per_prompt=3, seed=2, catalog=catalog)[0]
    for number, prompt in enumerate(("a bird", "a fish")):
        of_prompt = [vote for vote in votes if vote.prompt == prompt]
        names = {name for vote in of_prompt for name in (vote.winner, vote.loser)}
        assert len(of_prompt) == len(names) == 3
        for name in names:
            assert name.startswith("vote-images/000020/")
            seed = int(Path(name).stem.rpartition("-")[2])
            seen = read_image(record.folder / name)[0]
            torch.testing.assert_close(seen, expected[number, seed - 2], atol=0.51 / 255, rtol=0)
    drawn = {file: file.stat().st_mtime_ns for file in (record.folder / "vote-images").rglob("*.png")}
    (again, *_) = drawn
    again.unlink()
    code, said = asked(str(record.folder), "--samples", "3", "--prompts", "a bird", "--prompts", "a dog")
    assert code == 0, said
    assert {vote.prompt for vote in read_votes(record.folder / "votes.jsonl")} == {"a bird", "a fish", "a dog"}
    for file, written in drawn.items():
        assert file == again or file.stat().st_mtime_ns == written, "a vote may be about it"
    monkeypatch.setattr("draft_core.runs.sample.drawing", lambda *words, **named: pytest.fail("drawn again"))
    assert asked(str(record.folder), "--samples", "3", "--prompts", "a dog")[0] == 0


def test_an_interrupted_call_keeps_the_images_of_the_prompts_that_are_drawn(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("draft_core.evaluation.evaluate")
    plain, calls = module.evaluate, []

    def interrupted(*words: Any, **named: Any) -> Any:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*words, **named)

    monkeypatch.setattr(module, "evaluate", interrupted)
    words = ["--model", "tiny", "--samples", "2", "-p", "a bird", "-p", "a fish", "-o", "votes.jsonl"]
    assert asked(*words)[0] != 0
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.png")}
    assert len(kept) == 2
    assert asked(*words)[0] == 0
    assert len(calls) == 3, "the first prompt is not drawn again"
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_votes_in_another_folder_name_images_relative_to_it(asked: Any, record: RunRecord, tmp_path: Path) -> None:
    code, said = asked(str(record.folder), "--count", "4", "--output", "elsewhere/mine.jsonl")
    assert code == 0, said
    votes = read_votes(tmp_path / "elsewhere" / "mine.jsonl")
    assert len(votes) == 4
    assert all((tmp_path / "elsewhere" / vote.winner).is_file() for vote in votes)
    assert all(vote.winner.startswith("../run/images/") for vote in votes)
    assert (
        "4 of 4 pairs are answered; answers go to"
        in asked(str(record.folder), "--count", "4", "--output", "elsewhere/mine.jsonl")[1]
    )


def test_a_model_is_voted_on_before_any_run(asked: Any, catalog: Catalog, tmp_path: Path) -> None:
    words = (
        "--model",
        "tiny",
        "--samples",
        "2",
        "-p",
        "a bird",
        "-p",
        "a fish",
        "-p",
        "a fox",
        "-o",
        "own/votes.jsonl",
    )
    code, said = asked(*words, "--count", "2")
    assert code == 0, said
    assert "2 of 2 pairs are answered" in said
    expected = sample("tiny", ["a bird", "a fish"], images_per_prompt=2, catalog=catalog)[0]
    votes = read_votes(tmp_path / "own" / "votes.jsonl")
    for vote, images in zip(sorted(votes, key=lambda vote: vote.prompt), expected, strict=True):
        for name in (vote.winner, vote.loser):
            assert name.startswith("vote-images/tiny-")
            seen = read_image(tmp_path / "own" / name)[0]
            image = images[int(Path(name).stem.rpartition("-")[2])]
            torch.testing.assert_close(seen, image, atol=0.51 / 255, rtol=0)
    assert len(list((tmp_path / "own").rglob("*.png"))) == 4, "two pairs are asked for"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "draft vote: neither a run nor a model is named; give the folder of a run, or --model"),
        (["run", "--model", "tiny"], "draft vote: a run and a model are named"),
        (["--model", "tiny", "--samples", "2", "-p", "x"], "--model: --output is left out; give --samples, --prompts"),
        (["--model", "tiny", "-o", "v.jsonl"], "--model: --samples is left out"),
    ],
)
def test_a_run_or_a_model_is_named(asked: Any, record: RunRecord, words: list[str], said: str) -> None:
    code, text = asked(*words)
    assert code == 2
    assert said in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "a dog"], "--prompts: no image is drawn; add --samples, or leave it out"),
        (["--seed", "3"], "--seed: no image is drawn"),
        (["--samples", "1"], "--samples"),
        (["--output", "run"], "run: it cannot be written (Is a directory)"),
        (["--count", "0"], "--count"),
    ],
)
def test_what_cannot_be_done_is_said(asked: Any, record: RunRecord, words: list[str], said: str) -> None:
    code, text = asked("run", *words)
    assert code == 2
    assert said in " ".join(text.split())
    assert not (record.folder / "votes.jsonl").exists()


def test_a_folder_without_a_finished_run_is_refused(asked: Any, tmp_path: Path) -> None:
    code, text = asked(str(tmp_path))
    assert code == 2
    assert "it holds no finished run, run.json is missing" in text


def test_a_run_whose_images_are_all_the_same_is_refused(asked: Any, tmp_path: Path) -> None:
    made_run(tmp_path / "run", FINE, trained={"jpeg": 1.0}, seeds=(0,), fading=0.0)
    code, text = asked("run")
    assert code == 2
    assert "run: no prompt has two different images; draw some with --samples 4" in text


def test_the_middle_frames_of_videos_are_said(asked: Any, tmp_path: Path) -> None:
    made_run(tmp_path / "run", FINE, trained={"jpeg": 1.0}, facts={"output": "frames"})
    assert "the model makes videos: their middle frames are shown" in asked("run", "--count", "1")[1]
