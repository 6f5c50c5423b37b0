"""The help of every command, held by files: a flag that is renamed or lost is seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import typer.rich_utils
from typer.main import get_command
from typer.testing import CliRunner

from draft_core.cli.app import app
from tests.support.golden import assert_golden


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of the program, of each command and of each command below it."""
    yield words
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, (*words, name))


@pytest.mark.parametrize("words", list(commands(get_command(app))), ids=lambda words: " ".join(("draft", *words)))
def test_the_help_is_that_of_the_file(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_WIDTH": 100, "COLOR_SYSTEM": None, "FORCE_TERMINAL": False}.items():
        monkeypatch.setattr(typer.rich_utils, name, value)
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="draft", color=False)
    assert result.exit_code == 0
    assert_golden(f"help/{'-'.join(('draft', *words))}.txt", result.output)


@pytest.mark.parametrize("words", list(commands(get_command(app))), ids=lambda words: " ".join(("draft", *words)))
def test_a_line_of_the_help_ends_where_the_next_word_would_not_fit(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 60
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", width)
    lines = CliRunner().invoke(app, [*words, "--help"], prog_name="draft", color=False).output.splitlines()
    text = [line.strip() for line in lines[: next(place for place, line in enumerate(lines) if line.startswith("╭"))]]
    for line, following in itertools.pairwise(text):
        if line and following:
            assert len(line) + 1 + len(following.split()[0]) > width - 2, f"{line!r} is broken before {following!r}"
