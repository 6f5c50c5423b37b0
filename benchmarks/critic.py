"""One question to emoji-vlm against several, at the same probability of the first: a table and an image of the gallery.

    python benchmarks/critic.py          # trains, or goes on where it stopped; writes docs/gallery.md and its image
    python benchmarks/critic.py --print  # writes no page and no image

Both recipes begin with the same model, prompts and noise, three seeds each, and are judged on prompts that neither was
tuned on. Several questions are judged after their last update; one question at its first evaluation where the mean
probability of "Is there a thing in red?" is at least that of several after theirs, or else where it is most. Errors of
a run are over prompts, of means over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from paired import rose, with_error
from tables import markdown, publish
from torch import set_num_threads

from draft_core import load_recipe
from draft_core import run_recipe as train
from draft_core.evaluation.collapse import EvalRecord
from draft_core.reporting.image_grid import draw_grid
from draft_core.reporting.run_record import RunRecord, load_images, read_run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
IMAGE = PAGE.parent / "images" / "gallery" / "critic.png"
ONE, SEVERAL = "critic-one-question", "critic"  # recipes
NAMES = {ONE: "one question", SEVERAL: "several"}
SEEDS = (0, 1, 2)
JUDGED = ("emoji-scene-judge-right", "emoji-scene-judge")
EVERY = 2  # which prompts are in the image


def run(name: str, seed: int, folder: Path) -> RunRecord:
    """The finished run of a recipe, in FOLDER/NAME-SEED."""
    output = folder / f"{name}-{seed}"
    if not (output / "run.json").is_file():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [f"output={output}", f"train.seed={seed}"])
        train(recipe, progress=lambda stage, done, total, note: print(f"{name} {stage} {done}/{total} {note}"))
    return read_run(output)


def red(found: EvalRecord) -> float:
    """The probability of a yes to the question, which is the last of the critic's scores: a metric."""
    means = found.means()
    return means[[name for name in means if name.startswith("vlm")][-1]]


def compared(one: RunRecord, several: RunRecord) -> dict[str, EvalRecord]:
    """Recipe -> the evaluation by which it is judged."""
    last = several.evaluations[-1]
    reached = (found for found in one.evaluations if red(found) >= red(last))
    return {ONE: next(reached, max(one.evaluations, key=red)), SEVERAL: last}


def share(record: RunRecord, found: EvalRecord) -> float:
    """Of the base model's alignment."""
    return found.means()["emoji-scene"] / record.before.means()["emoji-scene"]


def kept_diversity(record: RunRecord, found: EvalRecord) -> float:
    """A share of the base model's."""
    return fmean(found.diversity) / fmean(record.before.diversity)


def row(name: str, record: RunRecord, found: EvalRecord) -> list[str]:
    """Of a table: its scores, the judge's with their changes in standard errors, and diversity."""
    before = record.before
    images = len(before.scores["emoji-scene"]) // before.prompts
    cells = [name, str(found.update), f"{red(found):.2f}"]
    cells.append(f"{found.means()['emoji-scene']:.1f} ({share(record, found):.0%})")
    judged = [rose(before.scores[score], found.scores[score], images) for score in JUDGED]
    return [*cells, *judged, f"{kept_diversity(record, found):.0%}"]


def mean_row(name: str, records: Sequence[RunRecord], judged: Sequence[EvalRecord]) -> list[str]:
    """Means over seeds with their standard errors."""
    pairs = list(zip(records, judged, strict=True))
    return [
        f"{name}, mean",
        f"{fmean(found.update for found in judged):.0f}",
        with_error([red(found) for found in judged], ".2f"),
        with_error([share(record, found) for record, found in pairs], ".1%"),
        *(with_error([found.means()[score] for found in judged], ".3f") for score in JUDGED),
        with_error([kept_diversity(record, found) for record, found in pairs], ".0%"),
    ]


def table(records: dict[str, list[RunRecord]], judged: dict[str, list[EvalRecord]]) -> str:
    """Before, then each recipe's seeds and their mean."""
    first = records[ONE][0]
    rows = [row("before", first, first.before)]
    for recipe, name in NAMES.items():
        for seed, record, found in zip(SEEDS, records[recipe], judged[recipe], strict=True):
            rows.append(row(f"{name}, seed {seed}", record, found))
        rows.append(mean_row(name, records[recipe], judged[recipe]))
    heads = ["", "updates", "p(red)", "`emoji-scene`", *(f"`{score}`" for score in JUDGED), "diversity"]
    return markdown(heads, rows)


def grid(records: dict[str, list[RunRecord]], judged: dict[str, list[EvalRecord]]) -> Sequence[tuple[str, list[Any]]]:
    """Some prompts, first seed: before, then one question and several."""
    first = records[ONE][0]
    images = len(first.before.scores["emoji-scene"]) // first.before.prompts
    shown = [load_images(first.folder, 0)]
    shown += [load_images(records[recipe][0].folder, judged[recipe][0].update) for recipe in NAMES]
    prompts = list(enumerate(first.facts.prompts))[::EVERY]
    return [(prompt, [part[place * images] for part in shown]) for place, prompt in prompts]


def main() -> None:
    """Trains, compares, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where the runs lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    set_num_threads(1)
    records = {recipe: [run(recipe, seed, words.runs) for seed in SEEDS] for recipe in NAMES}
    both = [compared(one, several) for one, several in zip(records[ONE], records[SEVERAL], strict=True)]
    judged = {recipe: [found[recipe] for found in both] for recipe in NAMES}
    publish({"critic": table(records, judged)}, None if words.print else PAGE)
    if not words.print:
        draw_grid(grid(records, judged)).save(IMAGE)


if __name__ == "__main__":
    main()
