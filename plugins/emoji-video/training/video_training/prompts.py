"""Writes the prompt lists: things and motions of training clips, and pairs that no training clip showed."""

from __future__ import annotations

import random
from pathlib import Path

from draft_emoji import FOLDER
from draft_emoji.scene_words import STYLE, things

from .words import MOTIONS, hidden, phrase

SEED = 7


def write(folder: Path) -> None:
    """Write `video-train.txt` and `video-heldout.txt`, which share no thing.

    The pairs of the second list are those that no clip showed, of the things of `emoji-heldout`.
    """
    lines = (FOLDER / "prompts" / "emoji-heldout.txt").read_text(encoding="utf-8").splitlines()
    kept = {STYLE.sub("", line) for line in lines}
    rng = random.Random(SEED)
    for name in ("train", "heldout"):
        held_out = name == "heldout"
        chosen = [t for t in things() if (t in kept) == held_out]
        pairs = [phrase(t, m) for t in chosen for m in MOTIONS if hidden(t, m) == held_out]
        rng.shuffle(pairs)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"video-{name}.txt").write_text("\n".join(pairs) + "\n", encoding="utf-8")
