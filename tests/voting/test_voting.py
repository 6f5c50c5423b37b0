"""Pairs, the file of votes and the page: a real server, asked by urllib and by a browser."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

from draft_core.errors import CheckpointError, DraftError
from draft_core.reporting.run_record import RunRecord
from draft_core.rewards.images import to_pil
from draft_core.voting.ballot import Ballot
from draft_core.voting.pairs import Pair, evaluated_images, pairs_of
from draft_core.voting.server import VoteServer
from draft_core.voting.vote_file import Vote, VoteFile, read_votes
from tests.support.browser import BROWSER, Browser
from tests.support.runs import PROMPTS, SEEDS, made_run

FINE = {"jpeg": [1, 2, 3]}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run of five prompts, two seeds and three evaluations, each darker than the one before."""
    return made_run(tmp_path_factory.mktemp("run") / "run", FINE, trained={"jpeg": 1.0})


def brightness(image: Path) -> float:
    with Image.open(image) as opened:
        return float(ImageStat.Stat(opened.convert("L")).mean[0])


def brighter(pair: Pair) -> str:
    return "left" if brightness(pair.left) > brightness(pair.right) else "right"


# Pairs


def test_a_run_is_read_and_voted_on_without_diffusers() -> None:
    """Which takes three times as long to import as all the rest."""
    code = "import sys, draft_core.reporting.run_record, draft_core.voting.server; print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n", done.stderr


def test_every_pair_of_a_prompts_images_comes_once_and_prompts_take_turns(record: RunRecord) -> None:
    images = evaluated_images(record)
    assert {prompt: len(files) for prompt, files in images.items()} == dict.fromkeys(PROMPTS, 3 * len(SEEDS))
    pairs = pairs_of(images)
    assert len(pairs) == len(PROMPTS) * 15, "6 images make 15 pairs"
    assert len({frozenset((pair.left, pair.right)) for pair in pairs}) == len(pairs)
    for place, pair in enumerate(pairs):
        assert pair.prompt == PROMPTS[place % len(PROMPTS)]
        assert {pair.left, pair.right} < set(images[pair.prompt])
    assert pairs == pairs_of(evaluated_images(record)), "the same in the next sitting"
    shares = Counter(pair.left < pair.right for pair in pairs)
    assert min(shares[True], shares[False]) > len(pairs) / 4, "no side is the newer one's"


def test_an_image_belongs_to_the_prompt_that_it_was_drawn_for(record: RunRecord) -> None:
    """Against the run's own way to give the images of a prompt."""
    from draft_core.reporting.summary import summarize

    summary = summarize(record)
    for number, prompt in enumerate(PROMPTS):
        files = evaluated_images(record)[prompt][: len(SEEDS)]
        for file, image in zip(files, summary.images_of(record.before, number), strict=True):
            with Image.open(file) as opened:
                assert opened.tobytes() == to_pil(image).tobytes()


def test_images_that_are_the_same_are_no_pair(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    files = sorted(tmp_path.iterdir())
    pairs = {frozenset((pair.left.stem, pair.right.stem)) for pair in pairs_of({"x": files})}
    assert pairs == {frozenset("ac"), frozenset("bc")}
    assert pairs_of({"x": files[:2]}) == []


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    record = made_run(tmp_path / "run", FINE, trained={"jpeg": 1.0})
    (record.folder / "images" / "000010" / "003.png").unlink()
    with pytest.raises(CheckpointError, match=r"images/000010/003\.png: there is no such file; copy the run again"):
        evaluated_images(record)


# The file

VOTES = [Vote("a cat", f"images/{n}.png", "images/é 9.png", tie=bool(n % 2)) for n in range(3)]


def filled(path: Path) -> Path:
    with VoteFile(path) as file:
        for vote in VOTES:
            file.append(vote)
    return path


def test_a_line_is_a_vote_and_each_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with VoteFile(path) as file:
        for number, vote in enumerate(VOTES, 1):
            file.append(vote)
            assert read_votes(path) == VOTES[:number]
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        vars(vote) for vote in VOTES
    ]
    with VoteFile(path) as file:
        file.drop_last()
        assert file.votes == read_votes(path) == VOTES[:2]


def test_a_line_that_a_kill_left_unfinished_is_dropped_and_the_next_begins_anew(tmp_path: Path) -> None:
    whole = filled(tmp_path / "votes.jsonl").read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:-cut])
        kept = VOTES if cut == 1 else VOTES[:2]
        assert read_votes(path) == kept
        with VoteFile(path) as file:
            assert file.votes == kept
            file.append(VOTES[0])
        assert read_votes(path) == [*kept, VOTES[0]]


@pytest.mark.parametrize(
    "line", ["x", "[]", "1", '{"prompt": "a"}', '{"prompt": "a", "winner": 1, "loser": "b", "tie": false}']
)
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, line: str) -> None:
    path = filled(tmp_path / "votes.jsonl")
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    with pytest.raises(DraftError, match=r"votes\.jsonl: line 4 is no vote \(.+\); correct or delete that line"):
        (refused := VoteFile(path)).__enter__()
    path.unlink()
    with VoteFile(path):  # the one that was refused, which is still there, holds no lock
        assert refused.votes == []


def test_one_process_alone_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with (
        VoteFile(path),
        pytest.raises(DraftError, match="another process is writing it; end that one, or give another"),
    ):
        VoteFile(path).__enter__()
    with VoteFile(path):
        pass


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("draft_core.voting.vote_file.os.fsync", fsync)


def test_what_cannot_be_written_is_not_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(tmp_path / "votes.jsonl")
    with VoteFile(path) as file:
        with monkeypatch.context() as patch:
            full_disk(patch)
            with pytest.raises(OSError, match="No space left"):
                file.append(VOTES[0])
        assert file.votes == read_votes(path) == VOTES


# The page


@pytest.fixture
def ballot(record: RunRecord, tmp_path: Path) -> Iterator[Ballot]:
    with VoteFile(tmp_path / "votes.jsonl") as file:
        yield Ballot(pairs_of(evaluated_images(record))[:60], file)


@pytest.fixture
def server(ballot: Ballot) -> Iterator[VoteServer]:
    with VoteServer(ballot) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(address: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def page(server: VoteServer) -> str:
    status, body, _ = get(server.address)
    assert status == 200
    return body.decode()


def post(server: VoteServer, path: str, **fields: Any) -> tuple[int, str]:
    """The status and page after a form was sent."""
    request = urllib.request.Request(server.address + path, urllib.parse.urlencode(fields).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.url == server.address, "the browser is sent back to the page"
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def shown(html: str) -> tuple[int, str]:
    """The number and the prompt of the pair on a page."""
    return int(re.findall(r'name="pair" value="(\d+)"', html)[0]), re.findall(r"<h1>(.*)</h1>", html)[0]


def test_sixty_answers_of_a_scripted_preference(server: VoteServer, record: RunRecord, tmp_path: Path) -> None:
    """The script sees what a browser is sent, and prefers the brighter image."""
    html = page(server)
    for number in range(60):
        pair, _ = shown(html)
        levels = {}
        for side in ("left", "right"):
            (path,) = re.findall(rf'src="(images/{pair}/{side})"', html)
            status, body, headers = get(server.address + path)
            assert (status, headers["Content-Type"]) == (200, "image/png")
            (tmp_path / "seen.png").write_bytes(body)
            levels[side] = brightness(tmp_path / "seen.png")
        assert f"{number} of 60 pairs answered" in html
        _, html = post(server, "vote", pair=pair, answer=max(levels, key=lambda side: levels[side]))
        assert len(read_votes(tmp_path / "votes.jsonl")) == number + 1
    assert "All pairs are answered" in html
    assert str(tmp_path / "votes.jsonl") in html
    votes = read_votes(tmp_path / "votes.jsonl")
    files = {prompt: {file.resolve() for file in images} for prompt, images in evaluated_images(record).items()}
    for vote in votes:
        winner, loser = ((tmp_path / name).resolve() for name in (vote.winner, vote.loser))
        assert brightness(winner) > brightness(loser)
        assert {winner, loser} < files[vote.prompt]
        assert not vote.tie


def test_a_tie_an_undo_and_an_answer_that_is_sent_twice(server: VoteServer, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    assert "undo" not in page(server)
    assert post(server, "undo")[0] == 200, "there is nothing to take back"
    post(server, "vote", pair=0, answer="tie")
    _, html = post(server, "vote", pair=0, answer="left")
    assert shown(html)[0] == 1
    (tie,) = read_votes(path)
    assert tie.tie
    post(server, "vote", pair=1, answer="right")
    _, html = post(server, "undo")
    assert shown(html)[0] == 1
    assert read_votes(path) == [tie]
    _, html = post(server, "undo")
    assert shown(html)[0] == 0
    assert read_votes(path) == []
    assert "undo" not in html


def test_another_sitting_goes_on_where_the_last_one_ended(record: RunRecord, tmp_path: Path) -> None:
    pairs = pairs_of(evaluated_images(record))[:6]
    path = tmp_path / "votes.jsonl"
    with VoteFile(path) as file:
        ballot = Ballot(pairs, file)
        for number in (0, 1, 2):
            ballot.answer(number, "right")
    first = read_votes(path)
    turned = [Vote(first[1].prompt, first[1].loser, first[1].winner, tie=True), *first[2:]]
    path.write_text("".join(json.dumps(vars(vote)) + "\n" for vote in turned))
    with VoteFile(path) as file:
        ballot = Ballot(pairs, file)
        assert (ballot.current, ballot.answered) == (0, 2), "in whichever order a line names the two"
        ballot.answer(0, "left")
        assert ballot.current == 3
        ballot.undo()
        ballot.undo()
        assert ballot.current == 0
        assert ballot.answered == 1
        other = Ballot(pairs[3:], file)
        assert not other.can_undo, "the last answer is not about its pairs"
        other.undo()
        assert len(file.votes) == 1


def test_an_answer_that_is_not_saved_is_said_and_asked_again(
    server: VoteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch)
        status, html = post(server, "vote", pair=0, answer="left")
    assert status == 500
    assert "The answer is not saved: [Errno 28] No space left on device" in html
    assert shown(html)[0] == 0
    assert post(server, "vote", pair=0, answer="left")[0] == 200
    assert len(read_votes(tmp_path / "votes.jsonl")) == 1


def test_nobody_without_the_address_is_heard(server: VoteServer, tmp_path: Path) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", server.address)
    root = server.address[: -len(server.token) - 1]
    for path in ("", "x/", "images/0/left", f"{server.token[:-1]}/", f"{server.token}x/", "é/"):
        assert get(root + urllib.parse.quote(path))[0] == 404
    for path in ("vote", "undo"):
        request = urllib.request.Request(root + path, b"pair=0&answer=left")
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            urllib.request.urlopen(request, timeout=30)
        caught.value.close()
    assert read_votes(tmp_path / "votes.jsonl") == []
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    ["images/60/left", "images/-1/left", "images/0/up", "images/0/../left", "images/" + "9" * 5000 + "/left", "x"],
)
def test_only_the_images_of_the_pairs_are_served(server: VoteServer, path: str) -> None:
    assert get(server.address + path)[0] == 404


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pair": 0},
        {"pair": 0, "answer": "both"},
        {"pair": "x", "answer": "left"},
        {"pair": "9" * 5000, "answer": "left"},
    ],
)
def test_a_form_that_says_nothing_is_refused(server: VoteServer, tmp_path: Path, fields: dict[str, Any]) -> None:
    assert post(server, "vote", **fields)[0] == 404
    assert read_votes(tmp_path / "votes.jsonl") == []


def test_the_page_loads_nothing_from_elsewhere_and_prompts_are_text(server: VoteServer, ballot: Ballot) -> None:
    ballot.answer(0, "left")
    _, body, headers = get(server.address)
    html = body.decode()
    assert "a &lt;b&gt;fish&lt;/b&gt;" in html
    assert not re.findall(r"(?:src|href|action)=\"(?!images/|vote\"|undo\"|data:,)", html)
    assert "://" not in html
    (nonce,) = set(re.findall(r'nonce="([^"]+)"', html))
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'nonce-{nonce}'" in policy
    assert nonce not in page(server)
    assert headers["Cache-Control"] == "no-store"


def test_a_port_that_is_taken_is_refused(server: VoteServer, ballot: Ballot) -> None:
    with pytest.raises(DraftError, match=r"--port \d+: the port cannot be had \(.+\); leave it out, or give another"):
        VoteServer(ballot, port=server.server_address[1])


# In a browser


@BROWSER
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_answers_by_keys(server: VoteServer, ballot: Ballot, tmp_path: Path, width: int) -> None:
    """Sixty pairs, on a wide screen and on a phone: what is pressed is written, and nothing lies beside the screen."""
    path = tmp_path / "votes.jsonl"
    with Browser(tmp_path / "profile", width) as browser:
        browser.open(server.address)

        def answered(count: int) -> None:
            title = "document.readyState === 'complete' && document.title"
            browser.wait(lambda value: str(value).startswith(f"{count} of 60"), title)

        answered(0)
        loaded = "[...document.images].map(image => image.complete && image.naturalWidth > 0).join()"
        browser.wait(lambda value: value == "true,true", loaded)
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("Math.min(...[...document.images].map(image => image.width))") > 150
        browser.press("x")
        browser.press("0")
        answered(1)
        browser.press("u")
        answered(0)
        assert read_votes(path) == []
        for number in range(60):
            assert ballot.current is not None
            browser.press({"left": "1", "right": "2"}[brighter(ballot.pairs[ballot.current])])
            answered(number + 1)
        assert "All pairs are answered" in browser.value("document.body.innerText")
        assert browser.complaints == []
    votes = read_votes(path)
    assert len(votes) == 60
    assert all(brightness(tmp_path / vote.winner) > brightness(tmp_path / vote.loser) for vote in votes)
