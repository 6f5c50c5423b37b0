"""Hundreds of commands over spoiled files and odd settings: each gives its output, or a sentence that says why not.

More of them, from another seed, with real curves, or one of them alone:

    DRAFT_FUZZ=10000 DRAFT_FUZZ_SEED=1 pytest tests/cli/test_fuzz.py
    DRAFT_FUZZ=10000 DRAFT_FUZZ_SEED=1 DRAFT_FUZZ_ONLY=1234 pytest tests/cli/test_fuzz.py
"""

from __future__ import annotations

import copy
import os
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draft_core.cli import app as cli
from draft_core.cli import rewards as cli_rewards
from draft_core.cli import sample as cli_sample
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.runs import pipeline_loading, run
from tests.recipe.test_fuzz import limited
from tests.support import resized
from tests.support.fuzz_commands import run_case
from tests.support.fuzz_files import make_files
from tests.support.resized import ResizedPromptConfig
from tests.support.runs import without_curves
from tests.support.thorough import THOROUGH

USUAL = 400 if THOROUGH else 40
WANTED = os.environ.get("DRAFT_FUZZ")
SEED = int(os.environ.get("DRAFT_FUZZ_SEED", "0"))
ONLY = os.environ.get("DRAFT_FUZZ_ONLY")


@pytest.fixture
def everything(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The tiny catalog and a reward that resizes; the pipeline is read once, runs are short, no curves are drawn."""
    entry = Entry(resized.spec(ResizedPromptConfig), Distribution("resized", "1"))
    catalog = replace(catalog, rewards={**catalog.rewards, "resized-prompt": entry})
    for module in (cli, cli_rewards, cli_sample):
        monkeypatch.setattr(module, "load_catalog", lambda: catalog)
    kept: dict[str, Any] = {}
    read = pipeline_loading._from_pretrained

    def once(*given: Any, **named: Any) -> Any:
        key = repr((given, named))
        if key not in kept:
            kept[key] = read(*given, **named)
        return copy.deepcopy(kept[key])

    monkeypatch.setattr(pipeline_loading, "_from_pretrained", once)
    whole = run.run_recipe
    monkeypatch.setattr(run, "run_recipe", lambda recipe, *given, **named: whole(limited(recipe), *given, **named))
    if not WANTED:
        without_curves(monkeypatch)
    return catalog


def test_commands_give_their_output_or_one_sentence(
    everything: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, home = tmp_path / "files", tmp_path / "home"
    files.mkdir()
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    make_files(files)
    found: dict[str, list[str]] = defaultdict(list)
    for number in [int(ONLY)] if ONLY else range(int(WANTED or USUAL)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case, problem = run_case(SEED, number, files, tmp_path, monkeypatch.chdir)
        if problem:
            found[problem].append(f"case {number}: {case}")
    shown = [f"{len(cases)} times {problem}\n    {cases[0]}" for problem, cases in found.items()]
    assert not found, "\n".join([f"{sum(map(len, found.values()))} findings", *sorted(shown)])
