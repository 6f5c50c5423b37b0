"""One question to emoji-vlm against several, at the same probability of the first: a table and an image of the gallery.

    python benchmarks/critic.py          # trains, or goes on where it stopped; writes docs/gallery.md and its image
    python benchmarks/critic.py --print  # writes no page and no image

Both recipes begin with the same model, prompts and noise. They are compared at the first evaluation where the mean
probability of "Is it red?" has risen by so much, on prompts that neither was tuned on. Errors are over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from paired import gains_of_prompts, standard_error
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
RECIPES = {"one question": "critic-one-question", "several": "critic"}
RED = "vlm#2"  # of the metrics: the probability of a yes to "Is it red?"
RISES = (0.09, 0.3)
EVERY = 6  # which prompts are in the image


def run(name: str, folder: Path) -> RunRecord:
    """The finished run of a recipe, in FOLDER/NAME."""
    output = folder / name
    if not (output / "run.json").is_file():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [f"output={output}"])
        train(recipe, progress=lambda stage, done, total, note: print(f"{name} {stage} {done}/{total} {note}"))
    return read_run(output)


def at_rise(record: RunRecord, rise: float) -> EvalRecord | None:
    """The first evaluation where the probability of red is so much above the base model's."""
    wanted = record.before.means()[RED] + rise
    return next((found for found in record.evaluations if found.means()[RED] >= wanted), None)


def row(name: str, record: RunRecord, found: EvalRecord) -> list[str]:
    """Of a table: its scores, the judge's with their changes in standard errors, and diversity."""
    before = record.before
    images = len(before.scores[RED]) // before.prompts
    cells = [name, str(found.update), f"{found.means()[RED]:.2f}"]
    cells.append(
        f"{found.means()['emoji-clip']:.3f} ({found.means()['emoji-clip'] / before.means()['emoji-clip']:.0%})"
    )
    for score in ("emoji-judge-top1", "emoji-judge"):
        gains = gains_of_prompts(before.scores[score], found.scores[score], images)
        error = f" ({fmean(gains) / standard_error(gains):+.1f})" if any(gains) else ""
        cells.append(f"{found.means()[score]:.3f}{error}")
    return [*cells, f"{fmean(found.diversity) / fmean(before.diversity):.0%}"]


def table(records: dict[str, RunRecord]) -> str:
    """Before, and every recipe at every rise that it reached."""
    first = next(iter(records.values()))
    rows = [row("before", first, first.before)]
    for rise in RISES:
        for name, record in records.items():
            if found := at_rise(record, rise):
                rows.append(row(f"{name}, p(red) + {rise:g}", record, found))
    heads = ["", "updates", "p(red)", "`emoji-clip`", "`emoji-judge-top1`", "`emoji-judge`", "diversity"]
    return markdown(heads, rows)


def grid(records: dict[str, RunRecord]) -> Sequence[tuple[str, list[Any]]]:
    """Some prompts: before, then every recipe at every rise that all reached."""
    first = next(iter(records.values()))
    images = len(first.before.scores[RED]) // first.before.prompts
    shown = [load_images(first.folder, 0)]
    for rise in RISES:
        found = [at_rise(record, rise) for record in records.values()]
        shown += [load_images(r.folder, f.update) for r, f in zip(records.values(), found, strict=True) if f]
    prompts = list(enumerate(first.facts.prompts))[::EVERY]
    return [(prompt, [part[place * images] for part in shown]) for place, prompt in prompts]


def main() -> None:
    """Trains, compares, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where the runs lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    set_num_threads(1)
    records = {name: run(recipe, words.runs) for name, recipe in RECIPES.items()}
    publish({"critic": table(records)}, None if words.print else PAGE)
    if not words.print:
        draw_grid(grid(records)).save(IMAGE)


if __name__ == "__main__":
    main()
