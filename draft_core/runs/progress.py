"""How a run says how far it is: the callback's type, and one that says nothing."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much, and a note; stage "note" is a message alone."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Says nothing."""
