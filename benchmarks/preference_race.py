"""The way to a mark on a reward that reads what an image shows, by samplers of all steps and of few: a table.

    python benchmarks/preference_race.py              # ten minutes a seed; goes on where it stopped
    python benchmarks/preference_race.py --seeds 1

DRaFT-1 on `emoji-preference` and twice `emoji-contrast`, a LoRA of rank 16, four images an update, without guidance,
judged by what `evaluation` would draw: 27 things that nothing was tuned on, one image each, of all 20 steps. The mark:
a mean of `emoji-preference` 0.8 above the base model's. Beside it stands what `emoji-judge`, which nobody trains on,
says at the mark, less what it says of the base model. Seconds are of the processor, one thread, without evaluations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from emoji_judges import make_judge
from tables import crossing, markdown, remembered, spread

from draft_core import (
    DifferentiableSampler,
    DraftK,
    Objective,
    Trainer,
    TrainSettings,
    load_catalog,
    load_pipeline,
    load_reward,
)
from draft_core.adapters.lora import add_lora
from draft_core.learners.direct import DirectLearner
from draft_core.recipe.resolve import resolve_prompts

STEPS, BATCH, RATE = 20, 4, 1e-3
TRAINED, JUDGE = "emoji-preference", "emoji-judge"
RISE, THINGS, JUDGED_EVERY, MOST_UPDATES = 0.8, 27, 2, 30
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"),
    *("conv_shortcut", "proj_in", "proj_out", "conv_out"),
)
SAMPLERS = (STEPS, 3, 2)
Point = dict[str, float]
HEADER = (
    "DRaFT-1 on a sampler of",
    "reached",
    "updates",
    "seconds",
    "of the first",
    f"`{JUDGE}` at the mark, less the base's",
)


def main() -> None:
    """Trains what is missing, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=SAMPLERS, help="of the samplers that are trained on")
    parser.add_argument("--runs", type=Path, default=Path("runs/preference-race"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, first = [], float("nan")
    for steps in options.steps:
        marks = [at_mark(run(steps, seed, options.runs)) for seed in range(options.seeds)]
        reached = [mark for mark in marks if mark]
        seconds = [mark["seconds"] for mark in reached]
        first = fmean(seconds) if steps == options.steps[0] and seconds else first
        rows.append(
            (
                f"{steps} steps",
                f"{len(reached)} of {len(marks)}",
                spread([mark["updates"] for mark in reached], ".1f"),
                spread(seconds, ".1f"),
                f"{fmean(seconds) / first:.2f}" if seconds else "-",
                spread([mark[JUDGE] for mark in reached], "+.3f"),
            )
        )
    print(markdown(HEADER, rows))


def run(steps: int, seed: int, folder: Path) -> list[Point]:
    """The evaluations of a run, the base model's first; from its file if it has been made before."""
    found: list[Point] = remembered(folder / f"{steps}-steps-{seed}.json", lambda: train(steps, seed))
    return found


def train(steps: int, seed: int) -> list[Point]:
    """One run, to the mark or to the last update."""
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)
    add_lora(pipe, rank=16, targets=TARGETS)
    call: dict[str, Any] = {"guidance_scale": 1.0}
    whole = DifferentiableSampler(pipe, num_inference_steps=STEPS, **call)
    judge = make_judge(whole, THINGS, TRAINED, JUDGE, prompts="emoji-hard")
    objective = Objective(
        {TRAINED: load_reward(TRAINED), "emoji-contrast": load_reward("emoji-contrast")},
        weights={TRAINED: 1.0, "emoji-contrast": 2.0},
    )
    trainer = Trainer(
        DifferentiableSampler(pipe, num_inference_steps=steps, **call),
        objective,
        DirectLearner(DraftK(k=1)),
        resolve_prompts("emoji-train-plain", load_catalog()),
        TrainSettings(steps=MOST_UPDATES, batch_size=BATCH, learning_rate=RATE, seed=seed),
        device="cpu",
    )
    points: list[Point] = [{"updates": 0, "seconds": 0.0, **judge()}]
    seconds, begun = 0.0, time.process_time()
    for report in trainer:
        seconds += time.process_time() - begun
        if report.update % JUDGED_EVERY == 0:
            points.append({"updates": report.update, "seconds": seconds, **judge()})
            print(f"{steps} steps, seed {seed}: {points[-1]}", flush=True)
            if at_mark(points):
                break
        begun = time.process_time()
    return points


def at_mark(points: list[Point]) -> Point | None:
    """Where the trained reward has risen enough, on a straight line between evaluations; the judge less the base's."""
    base = points[0]
    found = crossing(points, TRAINED, base[TRAINED] + RISE)
    return found and {**found, JUDGE: found[JUDGE] - base[JUDGE]}


if __name__ == "__main__":
    main()
