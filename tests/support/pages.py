"""What is run of the pages: their code and recipes, in few updates, where the plugins that they name are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from draft_core import load_catalog

ROOT = Path(__file__).parents[2]

# Settings with which a recipe of the repository runs in seconds.
SMALL = (
    "train.steps=2",
    "train.batch_size=1",
    "model.num_inference_steps=2",
    "evaluation.count=2",
    "evaluation.images_per_prompt=1",
    "device=cpu",
)


def text_of(page: str) -> str:
    """A page by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    """The blocks of a page in a language, given as a regular expression, in order."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def run_code(program: str, names: dict[str, Any]) -> None:
    """Runs a block with these names, to which it adds its own."""
    exec(compile(program, "page", "exec", dont_inherit=True), names)


def require_installed(*distributions: str) -> None:
    """Skips the test by name where one of them is missing."""
    if missing := set(distributions) - load_catalog().versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")
