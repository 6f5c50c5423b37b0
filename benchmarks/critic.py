"""One question to emoji-vlm against several, at the same probability of the first: a table and an image of the gallery.

    python benchmarks/critic.py          # trains, or goes on where it stopped; writes docs/gallery.md and its image
    python benchmarks/critic.py --print  # writes no page and no image

Both recipes begin with the same model, prompts and noise. They are compared at the first evaluation where the mean
probability of "Is there a thing in red?" has risen by so much, or else the most, on prompts that neither was tuned on.
Errors are over prompts.
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
RUNS = (  # name, recipe, seed; the first two are in the image
    ("one question", "critic-one-question", 0),
    ("several", "critic", 0),
    ("several, seed 1", "critic", 1),
)
RISE = 0.3
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


def at_rise(record: RunRecord) -> EvalRecord:
    """The first evaluation where p(red) is so much above the base model's, or the one where it is most."""
    wanted = red(record.before) + RISE
    return next((found for found in record.evaluations if red(found) >= wanted), max(record.evaluations, key=red))


def row(name: str, record: RunRecord, found: EvalRecord) -> list[str]:
    """Of a table: its scores, the judge's with their changes in standard errors, and diversity."""
    before = record.before
    images = len(before.scores["emoji-scene"]) // before.prompts
    cells = [name, str(found.update), f"{red(found):.2f}"]
    share = found.means()["emoji-scene"] / before.means()["emoji-scene"]
    cells.append(f"{found.means()['emoji-scene']:.1f} ({share:.0%})")
    for score in ("emoji-scene-judge-right", "emoji-scene-judge"):
        gains = gains_of_prompts(before.scores[score], found.scores[score], images)
        error = f" ({fmean(gains) / standard_error(gains):+.1f})" if any(gains) else ""
        cells.append(f"{found.means()[score]:.3f}{error}")
    return [*cells, f"{fmean(found.diversity) / fmean(before.diversity):.0%}"]


def table(records: dict[str, RunRecord]) -> str:
    """Before, and every run where its probability has risen so far."""
    first = next(iter(records.values()))
    rows = [row("before", first, first.before)]
    rows += [row(name, record, at_rise(record)) for name, record in records.items()]
    heads = ["", "updates", "p(red)", "`emoji-scene`", "`emoji-scene-judge-right`", "`emoji-scene-judge`", "diversity"]
    return markdown(heads, rows)


def grid(records: Sequence[RunRecord]) -> Sequence[tuple[str, list[Any]]]:
    """Some prompts: before, then every run where its probability has risen so far."""
    images = len(records[0].before.scores["emoji-scene"]) // records[0].before.prompts
    shown = [load_images(records[0].folder, 0)]
    shown += [load_images(record.folder, at_rise(record).update) for record in records]
    prompts = list(enumerate(records[0].facts.prompts))[::EVERY]
    return [(prompt, [part[place * images] for part in shown]) for place, prompt in prompts]


def main() -> None:
    """Trains, compares, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where the runs lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    set_num_threads(1)
    records = {name: run(recipe, seed, words.runs) for name, recipe, seed in RUNS}
    publish({"critic": table(records)}, None if words.print else PAGE)
    if not words.print:
        draw_grid(grid(list(records.values())[:2])).save(IMAGE)


if __name__ == "__main__":
    main()
