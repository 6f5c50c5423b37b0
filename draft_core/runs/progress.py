"""How a run says how far it is: the callback's type, one that says nothing, and one that tells two."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with a stage, how much of it is done, of how much, and a note; stage "note" is a message alone."""


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Says nothing."""


def image_stage(stage: str, progress: Progress) -> Callable[[int, int], None]:
    """What `evaluate` tells of its images, as a stage of `progress`."""
    return lambda done, total: progress(stage, done, total, "images")


def both(progress: Progress, other: Callable[[str, int, int], None]) -> Progress:
    """Tells two of it, the second without the note."""

    def tell(stage: str, done: int, total: int, note: str) -> None:
        progress(stage, done, total, note)
        other(stage, done, total)

    return tell
