"""`draft score` and JSON on the standard output: what fails costs the others nothing, and the output is JSON alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import cost as cli_cost
from draft_core.cli import rewards as cli_rewards
from draft_core.json_text import json_text
from tests.support import tiny
from tests.support.tiny import Redness

RED, GREY = (255, 0, 0), (9, 9, 9)


@pytest.fixture
def draft(catalog: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs `draft` in a folder of three images, with a catalog whose plugins print when they are imported."""

    def noisy_catalog() -> Any:
        print("a plugin says hello")
        return catalog

    for module in (cli, cli_cost, cli_rewards):
        monkeypatch.setattr(module, "load_catalog", noisy_catalog)
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.png", RED), ("b.png", GREY), ("c.png", RED)):
        Image.new("RGB", (8, 6), colour).save(name)

    def run(*words: str) -> Result:
        result = CliRunner().invoke(cli.app, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


class Talkative(Redness):
    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        print("scoring")
        return super().forward(images, prompts)


def test_the_output_is_json_alone_whatever_plugins_print(
    draft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "Redness", Talkative)
    result = draft("score", "a.png", "b.png", "--reward", "redness", "--json")
    assert json.loads(result.stdout)["scores"] == [{"image": "a.png", "score": 1.0}, {"image": "b.png", "score": 0.0}]
    assert "a plugin says hello" in result.stderr
    assert "scoring" in result.stderr
    assert "$defs" in json.loads(draft("schema").stdout)


def test_one_bad_file_costs_the_others_nothing(draft: Callable[..., Result]) -> None:
    Path("b.png").write_bytes(Path("b.png").read_bytes()[:50])
    result = draft("score", "a.png", "b.png", "c.png", "--reward", "redness", "--json")
    assert result.exit_code == 1
    first, second, third = json.loads(result.stdout)["scores"]
    assert (first, third) == ({"image": "a.png", "score": 1.0}, {"image": "c.png", "score": 1.0})
    assert second["score"] is None
    assert second["error"].startswith("b.png: cannot be read as an image (")
    assert "not scored: b.png" in result.stderr
    result = draft("score", "a.png", "b.png", "c.png", "--reward", "redness")
    assert result.exit_code == 1
    assert result.stdout.count(" 1 ") == 2
    assert "nan" not in result.stdout
    result = draft("score", "b.png", "--reward", "redness")
    assert result.exit_code == 2
    assert result.stderr.count("error:") == 1


def test_a_missing_file_is_found_before_the_reward_is_loaded(
    draft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "Redness", lambda config: pytest.fail("it was loaded"))
    result = draft("score", "a.png", "none.png", "--reward", "redness")
    assert result.exit_code == 2
    assert "none.png: no such file; check the path" in result.stderr


class Fails(Redness):
    """What a reward may do wrong at grey images."""

    how: Callable[[torch.Tensor], Any]

    def forward(self, images: torch.Tensor, prompts: list[str]) -> Any:
        scores = super().forward(images, prompts)
        return type(self).how(scores) if float(scores.max()) < 0.5 else scores


def raising(scores: torch.Tensor) -> None:
    raise ZeroDivisionError("by grey")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (raising, "reward 'redness': it raised ZeroDivisionError: by grey ("),
        (lambda scores: scores.sum(), "it returned torch.float32 of shape () for 1 images"),
        (lambda scores: float(scores), "it returned float for 1 images"),
        (lambda scores: scores * math.nan, "b.png: its score is nan; see `draft rewards check redness`"),
    ],
)
def test_a_reward_that_fails_is_one_sentence(
    draft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, how: Any, sentence: str
) -> None:
    monkeypatch.setattr(Fails, "how", staticmethod(how), raising=False)
    monkeypatch.setattr(tiny, "Redness", Fails)
    result = draft("score", "a.png", "b.png", "--reward", "redness", "--json")
    assert result.exit_code == 1
    assert sentence in result.stderr
    scores = json.loads(result.stdout, parse_constant=pytest.fail)["scores"]
    assert [row["score"] for row in scores] == [1.0, None]
    result = draft("score", "b.png", "--reward", "redness")
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_images_are_read_one_at_a_time(draft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from draft_core.library import scores

    events: list[str] = []

    class Seen(Redness):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            events.append("score")
            return super().forward(images, prompts)

    def read(path: Path) -> torch.Tensor:
        events.append("read")
        return torch.zeros(1, 3, 4, 4)

    monkeypatch.setattr(tiny, "Redness", Seen)
    monkeypatch.setattr(scores, "read_image", read)
    assert draft("score", "a.png", "b.png", "--reward", "redness").exit_code == 0
    assert events == ["read", "score", "read", "score"]


def test_numbers_that_are_not_finite_have_no_word_in_json() -> None:
    text = json_text({"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan, "d": "NaN", "e": True}})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [1.5, None, [None, None]],
        "b": {"c": None, "d": "NaN", "e": True},
    }
