"""A real encoder's bytes, which have no gradient, lowered through a surrogate, and what an old surrogate is worth.

    python benchmarks/surrogate.py                     # two runs on the embedded model, then the table and the diagram
    python benchmarks/surrogate.py --runs FOLDER       # where the runs lie; finished ones are read, others go on
    python benchmarks/surrogate.py --no-training       # of the updates that the runs have made so far

Both runs train on `jpeg-size`, the bytes that Pillow writes, through a surrogate; `emoji-clip` only judges. One asks
the encoder about the images of every update (`refresh: 1`), the other about those of the warm-up alone (`refresh: 0`).
The judge is the encoder in both, on held-out prompts. The diagram is docs/images/surrogate.png.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from draft_core import load_catalog, load_recipe, run_recipe
from draft_core.evaluation.collapse import EvalRecord
from draft_core.reporting.run_record import EVALUATIONS, METRICS, read_rows
from draft_core.training.step_report import StepReport

DIAGRAM = Path(__file__).parents[1] / "docs" / "images" / "surrogate.png"
REWARD, ALIGNMENT = "jpeg-size", "emoji-clip"
REFRESHES = (1, 0)
BLUE, RED = "#14507d", "#b3460b"
LEAST_FALL, LEAST_ALIGNMENT, MOST_QUERIES = 0.08, 0.93, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/surrogate"))
    parser.add_argument("--no-training", action="store_true", help="read the runs as they are")
    arguments = parser.parse_args()
    folders = {refresh: arguments.runs / f"refresh-{refresh}" for refresh in REFRESHES}
    catalog = load_catalog()
    for refresh, folder in folders.items():
        if not arguments.no_training and not (folder / "lora").is_dir():
            run_recipe(load_recipe(recipe(refresh, folder.absolute()), catalog=catalog), catalog)
    runs = {refresh: read(folder) for refresh, folder in folders.items()}
    for refresh, run in runs.items():
        print_run(refresh, run)
    save_diagram(runs, DIAGRAM)


def recipe(refresh: int, output: Path) -> dict[str, Any]:
    return {
        "model": {"pretrained": "emoji", "num_inference_steps": 4, "guidance_scale": 1.0},
        "prompts": "emoji-train",
        "method": {"kind": "draft-k", "k": 1},
        "rewards": [
            {"kind": REWARD, "quality": 80, "surrogate": {"refresh": refresh}},
        ],
        "metrics": [{"kind": ALIGNMENT}],
        "train": {"steps": 60, "batch_size": 8, "learning_rate": 1.0e-3, "seed": 0},
        "evaluation": {
            "prompts": "emoji-heldout",
            "count": 16,
            "images_per_prompt": 2,
            "every": 5,
            "on_collapse": "warn",
        },
        "checkpoint": {"every": 5},
        "output": str(output),
    }


@dataclass(frozen=True)
class Made:
    """What a run has written down so far."""

    updates: list[StepReport]
    evaluations: list[EvalRecord]


def read(folder: Path) -> Made:
    return Made(read_rows(folder / METRICS, StepReport), read_rows(folder / EVALUATIONS, EvalRecord))


def print_run(refresh: int, run: Made) -> None:
    before = run.evaluations[0]
    print(f"\nrefresh: {refresh}\n\n| updates | queries | kB | change | alignment | of the base model's |")
    print("| --- | --- | --- | --- | --- | --- |")
    for evaluation in run.evaluations:
        size, alignment = (fmean(evaluation.scores[name]) for name in (REWARD, ALIGNMENT))
        base_size, base_alignment = (fmean(before.scores[name]) for name in (REWARD, ALIGNMENT))
        queries = sum(row.reward_queries for row in run.updates if row.update <= evaluation.update)
        fall, kept = 1 - size / base_size, alignment / base_alignment
        reached = fall >= LEAST_FALL and kept >= LEAST_ALIGNMENT and queries <= MOST_QUERIES
        cells = (evaluation.update, queries, f"{-size:.3f}", f"{-fall:+.1%}", f"{alignment:.3f}", f"{kept:.1%}")
        print(f"| {' | '.join(map(str, cells))} |{'  <- reached' if reached else ''}")
    agreements = [row.learner[name] for row in run.updates if (name := f"{REWARD} rank agreement") in row.learner]
    if agreements:
        last = agreements[len(agreements) // 2 :]
        print(f"\nSpearman on new images before it is fitted to them, second half: {fmean(last):.2f}")


def save_diagram(runs: dict[int, Made], path: Path) -> None:
    """The surrogate's opinion of training images, and the encoder's of held-out ones, over updates."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (refresh, run) in zip(figure.subplots(1, 2, sharey=True), runs.items(), strict=True):
        updates = [row.update for row in run.updates]
        guesses = [row.scores[REWARD] for row in run.updates]
        means = [fmean(guesses[max(0, place - 3) : place + 4]) for place in range(len(guesses))]
        axes.plot(updates, guesses, color=RED, alpha=0.3, linewidth=0.8)
        axes.plot(updates, means, color=RED, linewidth=2, label="surrogate, training images")
        judged = [(evaluation.update, fmean(evaluation.scores[REWARD])) for evaluation in run.evaluations]
        axes.plot(
            *zip(*judged, strict=True), color=BLUE, marker="o", linewidth=2, label="real encoder, held-out images"
        )
        axes.set_title(f"refresh: {refresh}")
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("score, -kB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
