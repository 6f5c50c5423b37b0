"""Methods that follow a reward's gradient, and methods that need none, on the embedded emoji model.

    python benchmarks/compare_rl.py                        # all runs of ten guided steps: many hours on one core
    python benchmarks/compare_rl.py --setting few-steps    # all runs of few steps without guidance: hours
    python benchmarks/compare_rl.py --plot                 # tables and image of the runs that are there
    python benchmarks/compare_rl.py --quick                # two updates of three methods, to see that it works

What is called again goes on where it stopped. One reward has a gradient (`jpeg`), the others have none: the bytes of a
real file (`jpeg-size`), and whether a network that nobody trained the model on sees the prompt's thing first
(`emoji-judge-top1`), or with few steps, after which that is nearly always so, both things of a scene in their colours
(`emoji-scene-judge-right`). Judges are the reward itself on images of held-out prompts from fixed seeds, real bytes for
`jpeg`, and an alignment by a CLIP. A run ends where it has gained what its task asks for, below 93 % of the base
model's alignment, or when its queries are used up; a query is an image that the reward scored in training. Each method
has the best of the learning rates that are tried on its first seed.

A run is a file of JSON lines, one for each time it was judged, with a checkpoint beside it while it is not over. Those
of few steps are docs/measurements/rl-few-steps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import torch
from diffusers.utils import logging as diffusers_logging
from emoji_judges import BYTES, FLOOR, make_judge
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rl_tasks import FEW_TASKS, QUICK, TASKS, Entry, Task
from tables import markdown, publish, spread
from transformers.utils import logging as transformers_logging

from draft_core import Trainer, build, load_catalog, load_checkpoint, load_recipe, save_checkpoint

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measurements" / "rl.md"
IMAGES = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Point:
    """A run where it was judged.

    Arguments:
        seconds: processor time of the updates so far, on one thread.
        scores: measure -> mean over the held-out images.
    """

    updates: int
    queries: int
    seconds: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """One entry, rate and seed of a task: points, the base model first."""

    task: Task
    entry: Entry
    rate: float
    seed: int
    points: tuple[Point, ...] = ()

    def gain(self, point: Point) -> float:
        """By how many per cent files are smaller than the base model's, or by how many points a share is larger."""
        before, now = (place.scores[self.task.judge] for place in (self.points[0], point))
        return 100 * (1 - now / before) if self.task.judge == BYTES else 100 * (now - before)

    def kept(self, point: Point) -> float:
        """Of the base model's alignment, in per cent."""
        return 100 * point.scores[self.task.alignment] / self.points[0].scores[self.task.alignment]

    def above_floor(self) -> tuple[Point, ...]:
        """The points before the first one below the floor."""
        below = [place for place, point in enumerate(self.points) if self.kept(point) < 100 * FLOOR]
        return self.points[: below[0]] if below else self.points

    def best(self) -> Point:
        """That of the largest gain above the floor."""
        return max(self.above_floor(), key=self.gain)

    def price(self, gain: float) -> tuple[float, float] | None:
        """Queries and seconds at a gain above the floor, on a straight line between points; None if it is nowhere."""
        for before, after in pairwise(self.points):
            if self.gain(after) >= gain:
                share = (gain - self.gain(before)) / (self.gain(after) - self.gain(before))
                if (1 - share) * self.kept(before) + share * self.kept(after) < 100 * FLOOR:
                    return None
                queries = before.queries + share * (after.queries - before.queries)
                return queries, before.seconds + share * (after.seconds - before.seconds)
            if self.kept(after) < 100 * FLOOR:
                return None
        return None

    def is_over(self) -> bool:
        """Whether it has come to the mark, below the floor, or to the end of its queries."""
        if not self.points:
            return False
        last = self.points[-1]
        ended = self.gain(last) >= self.task.mark or self.kept(last) < 100 * FLOOR
        return ended or last.queries >= self.task.budget

    def rank(self) -> tuple[float, float]:
        """The smaller the better: queries to the mark, and where there is none the gain above the floor."""
        price = self.price(self.task.mark)
        return math.inf if price is None else price[0], -self.gain(self.best())


@dataclass(frozen=True)
class Setting:
    """Tasks that are trained, tabled and drawn together.

    Arguments:
        runs: folder of the runs' files.
        image: of all tasks.
    """

    tasks: tuple[Task, ...]
    runs: Path
    image: Path


SETTINGS = {
    "ten-steps": Setting(TASKS, Path("runs/compare-rl"), IMAGES / "compare-rl.png"),
    "few-steps": Setting(FEW_TASKS, PAGE.with_name("rl-few-steps"), IMAGES / "compare-rl-few-steps.png"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    setting = SETTINGS[options.setting]
    tasks = [task for task in (QUICK if options.quick else setting.tasks) if options.only in (None, task.name)]
    runs = options.runs or setting.runs
    if not options.plot:
        for task in tasks:
            for entry in task.entries:
                if options.methods is None or entry.name in options.methods:
                    train_entry(task, entry, runs / task.name, options.seeds)
    begun = [task for task in tasks if any(runs_of(task, entry, runs) for entry in task.entries)]
    if not begun:
        raise SystemExit(f"{runs}: there are no runs; train some, or name their folder by --runs")
    publish({task.name: table(task, runs) for task in begun}, options.page if options.plot else None)
    if options.plot:
        save_image(begun, runs, options.image or setting.image)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", action="store_true", help="train nothing: table and image of what is there")
    parser.add_argument("--quick", action="store_true", help="two updates of three methods, to see that it works")
    known = [task for setting in SETTINGS.values() for task in setting.tasks]
    names = list(dict.fromkeys(entry.name for task in known for entry in task.entries))
    parser.add_argument("--setting", choices=SETTINGS, default="ten-steps", help="default ten-steps")
    parser.add_argument("--methods", nargs="+", choices=names, help="only these; left out, all")
    parser.add_argument("--only", choices=[task.name for task in (*known, *QUICK)], help="only this comparison")
    parser.add_argument("--seeds", type=int, help="so many of each entry, the first ones; left out, all")
    parser.add_argument("--runs", type=Path, help="folder of their files; left out, the setting's")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose tables --plot writes")
    parser.add_argument("--image", type=Path, help="that --plot makes; left out, the setting's")
    return parser.parse_args(arguments)


# Training


def train_entry(task: Task, entry: Entry, folder: Path, seeds: int | None = None) -> None:
    """All rates on the first seed, then the best on the others, `seeds` in all."""
    tried = [train(Run(task, entry, rate, entry.seeds[0]), folder) for rate in entry.rates]
    rate = min(tried, key=Run.rank).rate
    for seed in entry.seeds[1:seeds]:
        train(Run(task, entry, rate, seed), folder)


def train(run: Run, folder: Path) -> Run:
    """The run to its end, from where its file and its checkpoint stand."""
    run = read_run(run, folder)
    if run.is_over():
        return run
    trainer = make_trainer(run)
    task = run.task
    names = dict.fromkeys((*task.beside, task.alignment, task.judge))
    judge = make_judge(trainer.sampler, task.images, *names, prompts=task.held_out, of_each=task.of_each)
    checkpoint, (queries, seconds) = file_of(run, folder, "checkpoint"), (0, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_dir():
        state = load_checkpoint(trainer, checkpoint)
        queries, seconds = state["queries"], state["seconds"]
    else:  # not begun, or it was over when its budget was smaller
        file_of(run, folder, "jsonl").unlink(missing_ok=True)
        run = replace(run, points=())
    while True:
        if not run.points or run.points[-1].updates < trainer.done:
            point = Point(trainer.done, queries, seconds, judge())
            run = Run(run.task, run.entry, run.rate, run.seed, (*run.points, point))
            with file_of(run, folder, "jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            print_progress(run)
        if run.is_over():
            break
        while queries < run.points[-1].queries + run.entry.judged_every:
            begin = time.process_time()
            report = trainer.train_step()
            queries, seconds = queries + report.reward_queries, seconds + time.process_time() - begin
        save_checkpoint(trainer, checkpoint, queries=queries, seconds=seconds)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return run


def make_trainer(run: Run) -> Trainer:
    recipe = {
        "model": run.task.model,
        "prompts": run.task.prompts,
        "method": run.entry.method,
        "rewards": [{**run.task.reward, **run.entry.reward}],
        "train": {**run.entry.train, "steps": run.task.budget, "learning_rate": run.rate, "seed": run.seed},
        "device": "cpu",
    }
    catalog = load_catalog()
    trainer = build(load_recipe(recipe, catalog=catalog), catalog=catalog)
    trainer.sampler.pipe.set_progress_bar_config(disable=True)
    assert trainer.sampler.steps == run.task.model["num_inference_steps"]  # counted now: no update need do so
    return trainer


def file_of(run: Run, folder: Path, suffix: str) -> Path:
    return folder / f"{run.entry.name}_{run.rate:g}_{run.seed}.{suffix}"


def read_run(run: Run, folder: Path) -> Run:
    """With the points that its file has."""
    file = file_of(run, folder, "jsonl")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return Run(run.task, run.entry, run.rate, run.seed, tuple(Point(**json.loads(line)) for line in lines))


def print_progress(run: Run) -> None:
    point = run.points[-1]
    gained = f"{run.gain(point):+.2f} {run.task.unit}, alignment {run.kept(point):.1f} % of the base model's"
    which = f"{run.task.name}: {run.entry.name}, rate {run.rate:g}, seed {run.seed}"
    print(f"{which}: {point.queries} queries, {point.seconds:.0f} s, {gained}", flush=True)


# Table and image


def runs_of(task: Task, entry: Entry, runs: Path) -> list[Run]:
    """The entry's runs at its best rate, those that have been begun."""
    tried = [read_run(Run(task, entry, rate, entry.seeds[0]), runs / task.name) for rate in entry.rates]
    made = [run for run in tried if len(run.points) > 1]
    if not made:
        return []
    rate = min(made, key=Run.rank).rate
    found = [read_run(Run(task, entry, rate, seed), runs / task.name) for seed in entry.seeds]
    return [run for run in found if len(run.points) > 1]


def table(task: Task, runs: Path) -> str:
    """What each entry gained above the floor, and what each gain had cost when it was reached."""
    levels = [level for level in task.levels if level <= task.mark]
    heads = ["method", "rate", "seeds", "queries", "largest gain", "alignment there, %"]
    rows = []
    for entry in task.entries:
        made = runs_of(task, entry, runs)
        if not made:
            rows.append(empty_row(entry.name, "not run", len(heads) + len(levels)))
            continue
        best = [run.best() for run in made]
        rows.append(
            [
                *(entry.name, f"{made[0].rate:g}", f"{len(made)}", f"{max(run.points[-1].queries for run in made)}"),
                spread([run.gain(point) for run, point in zip(made, best, strict=True)], ".1f"),
                spread([run.kept(point) for run, point in zip(made, best, strict=True)], ".1f"),
                *(price_cell(made, level) for level in levels),
            ]
        )
    rows += [empty_row(name, "needs a gradient", len(heads) + len(levels)) for name in task.refused]
    return markdown([*heads, *(f"to {level} {task.unit}" for level in levels)], rows)


def empty_row(name: str, why: str, cells: int) -> list[str]:
    return [name, why, *[""] * (cells - 2)]


def price_cell(made: Sequence[Run], level: float) -> str:
    """Mean queries at a gain, and seconds, of the runs that reached it; where none did, how far they went."""
    prices = [price for run in made if (price := run.price(level))]
    if not prices:
        last = max(run.above_floor()[-1].queries for run in made)
        fell = all(len(run.above_floor()) < len(run.points) for run in made)
        return f"floor after {last}" if fell else f"> {last}"
    some = "" if len(prices) == len(made) else f"; {len(prices)} of {len(made)}"
    return (
        f"{spread([queries for queries, _ in prices], '.0f')} ({fmean(seconds for _, seconds in prices):.0f} s{some})"
    )


def save_image(tasks: Sequence[Task], runs: Path, image: Path) -> None:
    """Of each task: the gain over queries, over seconds, and the alignment over the gain."""
    figure = Figure(figsize=(12, 3.6 * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(entry.name for task in tasks for entry in task.entries))
    for task, axes in zip(tasks, figure.subplots(len(tasks), 3, squeeze=False), strict=True):
        by_queries, by_seconds, quality = axes
        for entry in task.entries:
            if made := runs_of(task, entry, runs):
                colour = f"C{names.index(entry.name)}"
                draw(by_queries, made, "queries", colour)
                draw(by_seconds, made, "seconds", colour)
                draw(quality, made, "gain", colour)
        for panel, label in ((by_queries, "reward queries"), (by_seconds, "seconds of one core")):
            panel.set(xlabel=label, ylabel=f"{task.name}: gain, {task.unit}")
            if panel.dataLim.x1 > 10 * panel.dataLim.minposx:
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                panel.xaxis.set_major_formatter("{x:g}")
                panel.xaxis.set_minor_formatter(NullFormatter())
            panel.axhline(0, color="grey", linewidth=0.6)
        quality.set(xlabel=f"gain, {task.unit}", ylabel="alignment kept, %")
        quality.axhline(100 * FLOOR, color="grey", linewidth=0.8, linestyle=":")
        by_queries.legend(fontsize=8)
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)


def draw(axes: Axes, runs: Sequence[Run], over: str, colour: str) -> None:
    """Means over seeds at the points that all of them have, with standard deviations."""
    columns = list(zip(*([(run, point) for point in run.points] for run in runs), strict=False))[over != "gain" :]
    xs = [[run.gain(point) if over == "gain" else getattr(point, over) for run, point in column] for column in columns]
    ys = [[(run.kept if over == "gain" else run.gain)(point) for run, point in column] for column in columns]
    axes.errorbar(
        [fmean(one) for one in xs],
        [fmean(one) for one in ys],
        yerr=[stdev(one) if len(one) > 1 else 0.0 for one in ys],
        marker="o",
        markersize=3,
        capsize=2,
        linewidth=1.2,
        color=colour,
        label=runs[0].entry.name,
    )


if __name__ == "__main__":
    main()
