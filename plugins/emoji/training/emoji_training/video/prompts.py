"""Writes the prompt lists of motions, one or two at once: those that videos were trained on, and hidden ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from .moving import MOTIONS, PAIRS, THINGS, is_hidden

SEED = 6


def write(folder: Path) -> None:
    """Write `emoji-motion`, `emoji-motion-pairs` and the held-out list of each, in which motions take turns.

    A thing with two motions is held out if no training video showed it with one of the two.
    """
    rng = random.Random(SEED)
    alone = [(words,) for words in MOTIONS]
    for name, asked in (("emoji-motion", alone), ("emoji-motion-pairs", PAIRS)):
        for ending, unseen in (("", False), ("-held-out", True)):
            write_list(
                folder / f"{name}{ending}.txt", asked, lambda i, motions, u=unseen: is_hidden(i, motions) == u, rng
            )


def write_list(
    file: Path,
    asked: Sequence[Sequence[str]],
    chosen: Callable[[int, Sequence[str]], bool],
    rng: random.Random,
) -> None:
    """The chosen things with each of the motions, or pairs of motions, that are asked for."""
    rows = [[f"{thing} {' and '.join(words)}" for i, thing in enumerate(THINGS) if chosen(i, words)] for words in asked]
    for row in rows:
        rng.shuffle(row)
    lines = [row[turn] for turn in range(max(map(len, rows))) for row in rows if turn < len(row)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
