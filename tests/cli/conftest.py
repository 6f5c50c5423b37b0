"""The command line as a function, for the tests of all commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import rewards as cli_rewards
from draft_core.cli import sample as cli_sample
from draft_core.registry.catalog import Catalog


@pytest.fixture
def draft(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blank_curves: None
) -> Callable[..., tuple[int, str]]:
    """Runs `draft` with the tiny catalog in an empty folder; gives the exit code and what was printed."""
    for module in (cli, cli_rewards, cli_sample):
        monkeypatch.setattr(module, "load_catalog", lambda: catalog)
    monkeypatch.setattr(cli.out, "width", 200)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run
