"""Files that hold what a format or a help text is, so that no change of it goes unseen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "golden"
UPDATE = "DRAFT_UPDATE_GOLDEN"  # set to 1, the environment variable has the files written anew


def assert_golden(name: str, text: str) -> None:
    """That `text` is what the file of this name holds.

    Where the change is wanted: `DRAFT_UPDATE_GOLDEN=1 python -m pytest TEST`, then read the difference.
    """
    file = FOLDER / name
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get(UPDATE) == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    elif not file.is_file():
        pytest.fail(f"there is no {file}; write it with {UPDATE}=1")
    assert text == file.read_text(encoding="utf-8"), f"{name} has changed; if that is wanted, run with {UPDATE}=1"
