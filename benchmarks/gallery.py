"""The runs of the gallery that improve images: three seeds of each, judged by what they were not trained on.

    python benchmarks/gallery.py two-things         # trains, or goes on where it stopped; writes table, image, curve
    python benchmarks/gallery.py two-things --print # writes no page, no image and no curve

Each is a recipe with another `train.seed`. Means are over the prompts and images that it evaluates, and errors over
prompts, of differences to the base model from the same noise. The last column of a table is the base model drawn with
more calls of the denoiser. The image shows some of the prompts at the first seed: base, tuned, base with more calls.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from paired import gains_of_prompts, standard_error
from tables import markdown, publish
from torch import set_num_threads

from draft_core import DifferentiableSampler, evaluate, load_catalog, load_pipeline, load_recipe
from draft_core import run_recipe as train
from draft_core.evaluation.collapse import EvalRecord
from draft_core.evaluation.evaluate import Evaluation
from draft_core.evaluation.image_measures import diversity
from draft_core.reporting.image_grid import draw_grid
from draft_core.reporting.reference_curves import CURVES, save_curve
from draft_core.reporting.run_record import RunRecord, load_images, read_run
from draft_core.runs.build import build_objective

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
IMAGES = PAGE.parent / "images" / "gallery"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Shown:
    """One run of the gallery.

    Arguments:
        recipe: its file.
        steps: of the base model in the last column.
        guidance: of the base model in the last column.
        every: which prompts are in the image: every so many of those evaluated.
    """

    recipe: Path
    steps: int = 20
    guidance: float = 4.0
    every: int = 4


GALLERY = {
    "two-things": Shown(ROOT / "draft_core" / "cli" / "demo.yaml", every=4),
    "one-step": Shown(ROOT / "recipes" / "one-step.yaml", every=6),
    "two-steps": Shown(ROOT / "recipes" / "two-steps.yaml", every=6),
    "two-things-two-steps": Shown(ROOT / "recipes" / "two-things-two-steps.yaml", every=4),
    "palette": Shown(ROOT / "recipes" / "palette.yaml", every=6),
}


def run(name: str, seed: int, folder: Path) -> RunRecord:
    """The finished run of a seed, in FOLDER/NAME-SEED."""
    output = folder / f"{name}-{seed}"
    if not (output / "run.json").is_file():
        recipe = load_recipe(GALLERY[name].recipe, [f"train.seed={seed}", f"output={output}"])
        train(recipe, progress=lambda stage, done, total, note: print(f"{output.name} {stage} {done}/{total} {note}"))
    return read_run(output)


def drawn_slowly(shown: Shown, record: RunRecord) -> Evaluation:
    """The base model's images of the run's prompts and seeds in the steps and with the guidance of the last column."""
    recipe, catalog = load_recipe(shown.recipe), load_catalog()
    judged = build_objective((*recipe.rewards, *recipe.metrics), catalog)
    sampler = DifferentiableSampler(
        load_pipeline(recipe.model.pretrained, catalog=catalog),
        num_inference_steps=shown.steps,
        guidance_scale=shown.guidance,
    )
    return evaluate(sampler, judged, record.facts.prompts, record.facts.seeds, batch_size=8)


def table(records: Sequence[RunRecord], slow: Evaluation, heading: str) -> str:
    """Scores of the base model, of the tuned one by each seed, and of the base model drawn slowly."""
    before, images = records[0].before, len(slow.seeds)
    heads = ["", "before", *(f"seed {seed}" for seed in SEEDS), heading]
    trained = set(records[0].facts.rewards)
    rows = []
    for name in sorted(before.scores, key=lambda name: name in trained):
        errors = [_errors(record.last, before, name, images) for record in records]
        values = [record.means()[name] for record in (before, *(each.last for each in records))]
        cells = [_number(value) for value in (*values, slow.means()[name])]
        cells[1:-1] = [f"{cell} ({error:+.1f})" for cell, error in zip(cells[1:-1], errors, strict=True)]
        rows.append([f"`{name}`{', trained' if name in trained else ''}", *cells])
    spread = fmean(before.diversity)
    shares = [100 * fmean(record.last.diversity) / spread for record in records]
    of_slow = 100 * float(diversity(slow.images.view(-1, images, *slow.images.shape[1:])).mean()) / spread
    rows.append(["diversity", "100 %", *(f"{share:.0f} %" for share in shares), f"{of_slow:.0f} %"])
    return markdown(heads, rows)


def _errors(now: EvalRecord, before: EvalRecord, name: str, images: int) -> float:
    """How many standard errors over prompts a score has risen."""
    gains = gains_of_prompts(before.scores[name], now.scores[name], images)
    return fmean(gains) / standard_error(gains)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=GALLERY)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where the runs lie")
    parser.add_argument("--print", action="store_true", help="write no page, no image and no curve")
    words = parser.parse_args()
    set_num_threads(1)
    shown = GALLERY[words.name]
    records = [run(words.name, seed, words.runs) for seed in SEEDS]
    slow = drawn_slowly(shown, records[0])
    publish(
        {words.name: table(records, slow, f"base, {shown.steps} steps, guidance {shown.guidance:g}")},
        None if words.print else PAGE,
    )
    if words.print:
        return
    first, images = records[0], len(slow.seeds)
    base, tuned = (load_images(first.folder, record.update) for record in (first.before, first.last))
    rows = [
        (prompt, [part[place * images] for part in (base, tuned, slow.images)])
        for place, prompt in list(enumerate(first.facts.prompts))[:: shown.every]
    ]
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_grid(rows, headings=["before", "tuned", f"{shown.steps} steps"]).save(IMAGES / f"{words.name}.png")
    shutil.rmtree(CURVES / words.name, ignore_errors=True)
    save_curve(first, CURVES / words.name)


if __name__ == "__main__":
    main()
