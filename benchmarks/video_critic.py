"""What a critic's answers gain a video model that is to show two motions: a table and a moving image of the gallery.

    python benchmarks/video_critic.py          # trains, or goes on where it stopped; writes docs/gallery.md, its image
    python benchmarks/video_critic.py --print  # writes no page and no image

The recipe with three seeds, judged as it says, on two motions; and each LoRA on single motions, as the base model is
there in as many steps. Errors of a run are over prompts, of means over seeds. The image shows every third prompt, by
the first of its noises, at the first seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from paired import rose, with_error
from PIL import Image, ImageSequence
from tables import markdown, publish, remembered

from draft_core import evaluate, load_catalog, load_recipe
from draft_core import run_recipe as train
from draft_core.recipe.resolve import given_prompts
from draft_core.reporting.image_grid import draw_grid, save_gif
from draft_core.reporting.run_record import RunRecord, read_run, video_files
from draft_core.runs.build import build_objective
from draft_core.runs.sample import drawing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
IMAGE = PAGE.parent / "images" / "gallery" / "video-critic.gif"
RECIPE = ROOT / "recipes" / "video-critic.yaml"
SEEDS = (0, 1, 2)
EVERY = 3  # which prompts are in the image
KINDS = tuple(f"moving {way} and {size}" for way in ("up", "down") for size in ("growing", "shrinking"))
SINGLE = "emoji-motion-held-out"
SHARE, THING = "emoji-motion", "emoji-motion-thing"
SCORES = {
    THING: "`emoji-motion-thing`, shows its thing",
    "emoji-path": "`emoji-path`",
    "vlm": "`emoji-vlm-motion`, log-probability, trained",
}
MEASURES = ("movement", "flicker")

Values = Mapping[str, Sequence[float]]  # measure -> a value of each prompt and noise, or of each prompt


def run(seed: int, folder: Path) -> RunRecord:
    """The finished run of a seed, in FOLDER/video-critic-SEED."""
    output = folder / f"video-critic-{seed}"
    if not (output / "run.json").is_file():
        recipe = load_recipe(RECIPE, [f"train.seed={seed}", f"output={output}"])
        train(recipe, progress=lambda stage, done, total, note: print(f"{output.name} {stage} {done}/{total} {note}"))
    return read_run(output)


def single(record: RunRecord, scale: float) -> dict[str, list[float]]:
    """Scores of single motions, as many prompts and noises as the run has, with so much of its LoRA."""
    recipe, catalog = load_recipe(RECIPE), load_catalog()
    prompts = given_prompts(SINGLE, catalog, where=SINGLE)[: len(record.facts.prompts)]
    judges = build_objective([metric for metric in recipe.metrics if metric.kind in (SHARE, THING)], catalog)
    with (
        drawing(recipe.model.pretrained, prompts, lora=record.folder, scales=[scale], catalog=catalog) as drawn,
        drawn.scaled(scale),
    ):
        found = evaluate(drawn.sampler, judges, prompts, record.facts.seeds, autocast=drawn.autocast)
    return {name: scores.tolist() for name, scores in found.scores.items()}


def row(name: str, before: Sequence[float], runs: Sequence[Sequence[float]], images: int = 2) -> list[str]:
    """Of a table: before, each seed, and the mean of the seeds."""
    means = with_error([fmean(values) for values in runs])
    return [name, f"{fmean(before):.3f}", *(rose(before, values, images) for values in runs), means]


def of_kind(kind: str, prompts: Sequence[str], values: Sequence[float]) -> list[float]:
    """The values of the prompts that ask for these two motions."""
    images = len(values) // len(prompts)
    return [value for number, value in enumerate(values) if prompts[number // images].endswith(kind)]


def table(records: Sequence[RunRecord], singles: Sequence[Values]) -> str:
    """Before, then each seed with its changes in standard errors, then their mean.

    Arguments:
        singles: scores of single motions: of the base model, then of each run.
    """
    before, runs, prompts = records[0].before, [record.last for record in records], records[0].facts.prompts
    shares = [found.scores[SHARE] for found in (before, *runs)]
    rows = [row("`emoji-motion`, shows both motions", shares[0], shares[1:])]
    for kind in KINDS:
        first, *rest = (of_kind(kind, prompts, values) for values in shares)
        rows.append(row(f"of those {kind}", first, rest))
    rows += [row(told, before.scores[name], [found.scores[name] for found in runs]) for name, told in SCORES.items()]
    rows.append(row("diversity", before.diversity, [found.diversity for found in runs], 1))
    rows += [row(name, getattr(before, name), [getattr(found, name) for found in runs]) for name in MEASURES]
    for name, told in {SHARE: "one motion: `emoji-motion`", THING: "one motion: `emoji-motion-thing`"}.items():
        rows.append(row(told, singles[0][name], [scores[name] for scores in singles[1:]]))
    return markdown(["", "before", *(f"seed {seed}" for seed in SEEDS), "mean"], rows)


def videos(record: RunRecord, update: int, numbers: Sequence[int]) -> list[torch.Tensor]:
    """Videos (T, 3, H, W) in [0, 1] that the run keeps of an evaluation."""
    found = []
    for file in video_files(record.folder, update, numbers):
        with Image.open(file) as moving:
            shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(moving)])
        found.append(torch.from_numpy(shown).permute(0, 3, 1, 2) / 255)
    return found


def frames(record: RunRecord) -> list[Image.Image]:
    """Some prompts, before and after, half of them beside the other half."""
    images = len(record.facts.seeds)
    places = range(0, len(record.facts.prompts), EVERY)
    before, after = (
        videos(record, found.update, [place * images for place in places]) for found in (record.before, record.last)
    )
    drawn = []
    for frame in range(len(before[0])):
        rows: list[tuple[str, list[Any]]] = [
            (record.facts.prompts[place], [old[frame], new[frame]])
            for place, old, new in zip(places, before, after, strict=True)
        ]
        half = (len(rows) + 1) // 2
        left, right = (draw_grid(part, headings=["before", "after"]) for part in (rows[:half], rows[half:]))
        whole = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
        whole.paste(left, (0, 0))
        whole.paste(right, (left.width, 0))
        drawn.append(whole)
    return drawn


def main() -> None:
    """Trains, judges, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where the runs lie")
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    torch.set_num_threads(1)
    records = [run(seed, words.runs) for seed in SEEDS]
    asked = [
        ("base", records[0], 0.0),
        *((f"seed-{seed}", record, 1.0) for seed, record in zip(SEEDS, records, strict=True)),
    ]
    singles = [
        remembered(words.runs / f"video-critic-single-{name}.json", partial(single, record, scale))
        for name, record, scale in asked
    ]
    publish({"video-critic": table(records, singles)}, None if words.print else PAGE)
    if not words.print:
        save_gif(frames(records[0]), IMAGE)


if __name__ == "__main__":
    main()
