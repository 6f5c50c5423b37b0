"""Writes the prompt lists of scenes: pairs of things of `emoji-train`, and of those of `emoji-heldout`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from draft_emoji.scene_words import COLOURS, STYLE, dyeable, phrase, things

from .. import pictures
from .composing import hidden

SEED = 5
DYED = 0.5  # share of the things that can be
COUNTS = {"train": 200, "heldout": 40}


def write(folder: Path) -> None:
    """Write `scenes-train.txt` and `scenes-heldout.txt` beside the lists of single things.

    The pairs of the second list stood together in no image that the denoiser was trained on.
    """
    concepts = pictures.phrases()
    rng = random.Random(SEED)
    for name, count in COUNTS.items():
        lines = (folder / f"emoji-{name}.txt").read_text(encoding="utf-8").splitlines()
        listed = {STYLE.sub("", line) for line in lines}
        numbers = [i for i, thing in enumerate(concepts) if thing in listed and thing in things()]
        lines = [prompt(concepts, pair, rng) for pair in pairs(numbers, count, unseen=name == "heldout", rng=rng)]
        (folder / f"scenes-{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(numbers: Sequence[int], count: int, unseen: bool, rng: random.Random) -> list[tuple[int, int]]:
    """`count` ordered pairs in which the numbers take turns, all of them `hidden`, or none."""
    found: list[tuple[int, int]] = []
    shown = dict.fromkeys(numbers, 0)
    options = [(a, b) for a in numbers for b in numbers if a != b and hidden(a, b) == unseen]
    rng.shuffle(options)
    while len(found) < count:
        pair = min(options, key=lambda p: shown[p[0]] + shown[p[1]])
        options.remove(pair)
        found.append(pair)
        for one in pair:
            shown[one] += 1
    return found


def prompt(concepts: Sequence[str], pair: tuple[int, int], rng: random.Random) -> str:
    """The words of the pair, some of its things in a colour."""
    words = []
    for number in pair:
        colour = rng.choice(COLOURS) if rng.random() < DYED and dyeable(concepts[number]) else ""
        words.append(phrase(concepts[number], colour))
    return " and ".join(words)
