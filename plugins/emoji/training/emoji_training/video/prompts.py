"""Writes the prompt lists of motions: pairs of a thing and a motion that videos were trained on, and hidden ones."""

from __future__ import annotations

import random
from pathlib import Path

from .moving import MOTIONS, THINGS, hidden

SEED = 6


def write(folder: Path) -> None:
    """Write `emoji-motion.txt` and `emoji-motion-held-out.txt`, in an order in which motions take turns."""
    rng = random.Random(SEED)
    for name, unseen in (("emoji-motion", False), ("emoji-motion-held-out", True)):
        rows = [
            [f"{thing} {words}" for i, thing in enumerate(THINGS) if hidden(i, number) == unseen]
            for number, words in enumerate(MOTIONS)
        ]
        for row in rows:
            rng.shuffle(row)
        lines = [row[turn] for turn in range(max(map(len, rows))) for row in rows if turn < len(row)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
