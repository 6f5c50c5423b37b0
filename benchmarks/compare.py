"""Every method on the embedded emoji model: what it costs to reach one mark, and how much one rollout can serve.

    python benchmarks/compare.py            # all runs, hours on one core; goes on where it stopped
    python benchmarks/compare.py --plot     # tables and image of the runs that are there
    python benchmarks/compare.py --quick    # two updates of two methods, to see that it works

All train on the `jpeg` reward alone. The judges are the bytes of real files and the alignment `emoji-clip`, which
nobody trains on, of things that nobody trained on, from fixed seeds. Five comparisons:

1. Races. The mark: real files 8 % smaller, and at least 93 % of the base model's alignment kept (the floor). A run ends
   at the mark, below the floor, or when its denoiser calls are used up. Each method has its own best learning rate:
   rates are tried on one seed, from the largest down, until a smaller one is not cheaper.
2. Equal steps. One learning rate, one number of optimiser steps, and 1 to 16 of them from each rollout.
3. Short prefixes: a race of all at one rate, twice the highest of the first, with 20 and with 50 sampler steps. Beside
   them DRaFT-1 on a sampler of five steps, judged like all by the images of all steps.
4. Detached targets, beside DRaFT-1 and DRaFT-1 on a sampler of three steps.
5. Short samplers: DRaFT-1 on samplers of two and three steps, at the rates at which it keeps 97 % of the alignment.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import emoji_judges
import torch
from diffusers.utils import logging as diffusers_logging
from emoji_judges import ALIGNMENT, BYTES, FLOOR, MARK, QUALITY
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import remembered, spread
from transformers.utils import logging as transformers_logging

from draft_core import (
    AlignProp,
    DifferentiableSampler,
    Draft,
    DraftK,
    DraftLV,
    DRTune,
    FlowBPSparse,
    Objective,
    PrefixReuse,
    Refl,
    ShortPrefix,
    Trainer,
    load_catalog,
    load_pipeline,
    load_reward,
)
from draft_core.adapters.lora import add_lora
from draft_core.plugin import MethodConfig
from draft_core.recipe.resolve import resolve_prompts
from draft_core.registry.targets import Target
from draft_core.rewards.protocol import FrozenModule
from draft_core.runs.build import build_learner
from draft_core.sampling.decoders.tiny import load_tiny_decoder
from draft_core.training.settings import TrainSettings

RATES = (4e-3, 2e-3, 1e-3, 5e-4)  # from ten times the default; see docs/measurements/methods.md on larger ones
COLOURS = (*(f"C{place}" for place in range(10)), "black", "navy")
IMAGE = Path("docs/images/compare.png")
PREFIX_IMAGE = Path("docs/images/short-prefix.png")


@dataclass(frozen=True)
class Method:
    """A method as it takes part.

    Arguments:
        checkpointing: recompute recorded denoiser calls, which then count twice; what makes many steps fit into memory.
        timed_as: what to time in its place, where the cost of an update is drawn at random.
        timed: whether to time it; not where the drift ends an update, so that no two cost the same.
        sampler_steps: of the sampler that it trains on, where that is not the task's; it is judged by the task's.
        rates: learning rates to try in the place of the task's.
        decoder: folder of an AutoencoderTiny that training decodes by.
        rounds: where one update in so many draws samples for all of them: the mean of so many is timed, in the place of
            the median of the task's rounds.
    """

    name: str
    method: MethodConfig
    checkpointing: bool = False
    timed_as: MethodConfig | None = None
    timed: bool = True
    sampler_steps: int | None = None
    rates: tuple[float, ...] | None = None
    rounds: int | None = None
    decoder: Path | None = None


@dataclass(frozen=True)
class Task:
    """What all methods of one comparison share.

    Arguments:
        name: of its folder.
        steps: sampler steps T.
        methods: the first is the one that the others are measured against.
        rates: learning rates to try, from the largest down.
        budget: denoiser calls of one run; one call is for the whole batch, with and without prompt.
        optimizer_steps: where all runs end; None makes it a race to the mark.
        judged_every: so many optimiser steps, or as soon after as the method can be stopped.
        images: held-out prompts that are judged, one image each.
        rounds: updates of each method that are timed, the methods taking turns.
    """

    name: str
    steps: int
    methods: tuple[Method, ...]
    rates: tuple[float, ...] = RATES
    budget: int = 400
    optimizer_steps: int | None = None
    judged_every: int = 1
    batch_size: int = 4
    images: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    rounds: int = 3


DRAFT_1 = Method("draft-k 1", DraftK(k=1))
REUSE = tuple(Method(f"prefix-reuse {updates}", PrefixReuse(updates=updates)) for updates in (2, 4, 8, 16))
BOUNDED = Method("prefix-reuse 16 to 0.04", PrefixReuse(updates=16, max_drift=0.04), timed=False)

# Rate times steps is the same in all: about what DRaFT-1 needs for the mark.
EQUAL_STEPS = tuple(
    Task(
        name=name,
        steps=steps,
        methods=(DRAFT_1, *REUSE, BOUNDED),
        rates=(rate,),
        budget=optimizer_steps * steps,
        optimizer_steps=optimizer_steps,
        judged_every=judged_every,
    )
    for name, steps, rate, optimizer_steps, judged_every in (
        ("equal-steps-20", 20, 2.5e-3, 16, 16),
        ("equal-steps-20-slow", 20, 1.25e-3, 32, 8),
        ("equal-steps-50-slow", 50, 1.25e-3, 32, 8),
    )
)
SLOW = EQUAL_STEPS[1]
RACE = Task(
    name="race",
    steps=20,
    judged_every=2,
    methods=(
        DRAFT_1,
        *REUSE,
        Method("draft-lv 2", DraftLV(resamples=2)),
        Method("refl 5", Refl(last=5)),
        Method("draft-k 5", DraftK(k=5)),
        Method("flowbp-sparse 5", FlowBPSparse(k=5)),
        Method("drtune 5", DRTune(k=5, last=10)),
        Method("alignprop", AlignProp(), checkpointing=True, timed_as=DraftK(k=10)),  # its mean K is 10.5
        Method("draft", Draft(), checkpointing=True),
    ),
)
RACERS = [one.name for one in RACE.methods]
SHORT = tuple(Method(f"short-prefix {steps}", ShortPrefix(prefix_steps=steps)) for steps in (4, 3))
FIVE_STEPS = Method("draft-k 1 of 5 steps", DraftK(k=1), sampler_steps=5)
PREFIXES = tuple(
    Task(
        name=f"prefixes-{steps}",
        steps=steps,
        rates=(8e-3,),
        budget=20 * steps,
        seeds=seeds,
        rounds=7,
        methods=(DRAFT_1, *SHORT, *more, FIVE_STEPS),
    )
    for steps, seeds, more in (
        (20, (0, 1, 2, 3, 4, 5), (Method("short-prefix 4, 2 updates", ShortPrefix(prefix_steps=4, updates=2)),)),
        (50, (0, 1, 2), ()),
    )
)
THREE_STEPS = Method("draft-k 1 of 3 steps", DraftK(k=1), sampler_steps=3)
TARGETS = Task(
    name="targets",
    steps=20,
    rates=(8e-3,),
    budget=400,
    methods=(
        DRAFT_1,
        THREE_STEPS,
        Method("target", Target(prefix_steps=3)),
        Method("target, 2 fits", Target(prefix_steps=3, fits=2)),
        Method("target, 4 updates from a batch", Target(prefix_steps=3, refresh=4), rounds=4),
    ),
)
# At a rate that keeps 97 % of the alignment, which for DRaFT-1 of all steps is half of that of the short prefixes.
SHORT_SAMPLERS = tuple(
    Task(
        name=f"short-samplers-{steps}",
        steps=steps,
        rates=(1.2e-2,),
        budget=40 * steps,
        seeds=tuple(range(seeds)),
        methods=(
            replace(DRAFT_1, rates=(4e-3,)),
            replace(THREE_STEPS, name="draft-k 1 of 3 steps, 8e-3", rates=(8e-3,)),
            THREE_STEPS,
            Method("draft-k 1 of 2 steps", DraftK(k=1), sampler_steps=2),
        ),
    )
    for steps, seeds in ((20, 6), (50, 3))
)
TASKS = (*EQUAL_STEPS, RACE, *PREFIXES, TARGETS, *SHORT_SAMPLERS)
QUICK = tuple(
    Task(
        name=name,
        steps=2,
        methods=(DRAFT_1, REUSE[0]),
        rates=(1e-3,),
        budget=2,
        optimizer_steps=optimizer_steps,
        batch_size=1,
        images=1,
        seeds=(0,),
        rounds=1,
    )
    for name, optimizer_steps in (("quick-race", None), ("quick-steps", 2))
)


@dataclass(frozen=True)
class Point:
    """The held-out images somewhere on a run: means of their kilobytes and of their alignment."""

    updates: float
    optimizer_steps: float
    calls: float
    kilobytes: float
    alignment: float


@dataclass(frozen=True)
class Run:
    """One method, rate and seed.

    Arguments:
        points: the base model first.
        drifts: for each update, how far its re-noised images lay from its samples, in order; root mean square over
            pixels in [0, 1], as `PrefixReuse.max_drift` has it.
    """

    method: str
    learning_rate: float
    seed: int
    points: tuple[Point, ...]
    drifts: tuple[tuple[float, ...], ...]

    def at_bytes(self) -> Point | None:
        """Where its files are as small as the mark asks, on a straight line between evaluations; None if nowhere."""
        target = MARK * self.points[0].kilobytes
        for before, after in pairwise(self.points):
            if after.kilobytes <= target:
                share = (before.kilobytes - target) / (before.kilobytes - after.kilobytes)
                old, new = asdict(before), asdict(after)
                return Point(**{name: old[name] + share * (new[name] - old[name]) for name in old})
        return None

    def at_mark(self) -> Point | None:
        """The same, if the alignment there is above the floor."""
        point = self.at_bytes()
        return point if point and point.alignment >= FLOOR * self.points[0].alignment else None

    def cost(self) -> float:
        """Denoiser calls up to the mark."""
        point = self.at_mark()
        return math.inf if point is None else point.calls

    def rank(self) -> tuple[float, float]:
        """The smaller the better: the way to the mark, and for those without one the smallest files above the floor."""
        floor = FLOOR * self.points[0].alignment
        return self.cost(), min(point.kilobytes for point in self.points if point.alignment >= floor)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    tasks = [task for task in (QUICK if options.quick else TASKS) if options.only in (None, task.name)]
    if not options.plot:
        for task in tasks:
            for method in task.methods:
                if options.methods is None or method.name in options.methods:
                    train_method(task, method, options.seeds, options.runs / task.name)
        for task in tasks:
            time_updates(task, options.runs)
    for task in tasks:
        if task.optimizer_steps:
            print_ends(task, options.runs)
        if task.optimizer_steps is None or task.judged_every < task.optimizer_steps:
            print_marks(task, options.runs)
    print_drifts(tasks, options.runs)
    if RACE in tasks:
        save_image(RACE, SLOW, options.runs, options.image)
    if PREFIXES[0] in tasks:
        save_prefix_image(options.runs, options.prefix_image)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", action="store_true", help="train nothing: tables and image of what is there")
    parser.add_argument("--quick", action="store_true", help="two updates of two methods, to see that it works")
    methods = sorted({method.name for task in TASKS for method in task.methods})
    names = [task.name for task in (*TASKS, *QUICK)]
    parser.add_argument("--methods", nargs="+", choices=methods, help="only these, as in 'draft-k 1'; left out, all")
    parser.add_argument("--seeds", type=int, help="only so many of the seeds, at least 1; left out, all")
    parser.add_argument("--only", choices=names, help="only this comparison; left out, all")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="default runs/compare")
    parser.add_argument("--image", type=Path, default=IMAGE, help=f"default {IMAGE}")
    parser.add_argument("--prefix-image", type=Path, default=PREFIX_IMAGE, help=f"default {PREFIX_IMAGE}")
    return parser.parse_args(arguments)


# Training


def train_method(task: Task, method: Method, seeds: int | None, folder: Path) -> None:
    """Searches its rate on the first seed, then trains so many in all with that."""
    rate = best_rate(task, method, folder)
    for seed in task.seeds[1:seeds]:
        run_once(task, method, rate, seed, folder)


def best_rate(task: Task, method: Method, folder: Path) -> float:
    """The rate with the cheapest way to the mark; where none reaches it, that of the smallest files above the floor."""
    best: Run | None = None
    for rate in method.rates or task.rates:
        # A rate that is not there yet when the best one was is no better: its run need not go on.
        budget = task.budget if best is None else min(task.budget, best.cost())
        run = run_once(task, method, rate, task.seeds[0], folder, budget)
        if best is None or run.rank() < best.rank():
            best = run
        elif best.at_mark():
            break
        if not run.at_mark() and run.points[-1].alignment >= FLOOR * run.points[0].alignment:
            break  # smaller rates are slower still
    assert best is not None
    return best.learning_rate


def run_once(task: Task, method: Method, rate: float, seed: int, folder: Path, budget: float | None = None) -> Run:
    """The run, from its file if it has been made before."""
    file = folder / f"{method.name.replace(' ', '-')}_{rate:g}_{seed}.json"
    remembered(file, lambda: asdict(train(task, method, rate, seed, task.budget if budget is None else budget)))
    return read_run(file)


def read_run(file: Path) -> Run:
    data = json.loads(file.read_text(encoding="utf-8"))
    points = tuple(Point(**point) for point in data.pop("points"))
    return Run(**data, points=points)


def train(task: Task, method: Method, rate: float, seed: int, budget: float) -> Run:
    """One run, from the base model to where its comparison ends it."""
    trainer, gauge = make_trainer(task, method, rate, seed)
    calls = count_calls(trainer.sampler)
    judge = make_judge(task, trainer.sampler)
    run = Run(method.name, rate, seed, (base_point(task),), ())
    used = optimizer_steps = 0
    for report in trainer:
        used += calls()
        judged_steps = optimizer_steps // task.judged_every
        optimizer_steps += report.optimizer_steps
        run = replace(run, drifts=(*run.drifts, gauge.taken()))
        if optimizer_steps // task.judged_every == judged_steps:
            continue
        run = replace(run, points=(*run.points, Point(report.update, optimizer_steps, used, *judge())))
        calls()  # those of the judge are not the method's
        print_progress(task, run)
        if task.optimizer_steps:
            if optimizer_steps >= task.optimizer_steps:
                break
        elif run.at_bytes() or kept(run, run.points[-1]) < 100 * FLOOR or used >= budget:
            break
    return run


def print_progress(task: Task, run: Run) -> None:
    point = run.points[-1]
    judged = f"bytes {change(run, point):+.1f} %, alignment {kept(run, point):.1f} % of the base model's"
    which = f"{task.name}: {run.method}, rate {run.learning_rate:g}, seed {run.seed}"
    print(f"{which}: {point.calls} calls, {judged}", flush=True)


def make_trainer(task: Task, method: Method, rate: float, seed: int) -> tuple[Trainer, DriftGauge]:
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)
    add_lora(pipe, rank=8)
    steps = method.sampler_steps or task.steps
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=steps,
        guidance_scale=4.0,
        gradient_checkpointing=method.checkpointing,
        decoder=None if method.decoder is None else load_tiny_decoder(str(method.decoder), dtype=torch.float32),
    )
    assert sampler.steps == steps  # counted now, so that the first update need not
    gauge = DriftGauge(load_reward("jpeg", quality=QUALITY))
    settings = TrainSettings(steps=task.budget, batch_size=task.batch_size, learning_rate=rate, seed=seed)
    prompts = resolve_prompts("emoji-train", load_catalog())
    learner = build_learner(method.method, load_catalog())
    trainer = Trainer(sampler, Objective({"jpeg": gauge}), learner, prompts, settings, device="cpu")
    return trainer, gauge


class DriftGauge(FrozenModule):
    """A reward's scores, and on the way how far the images of an update move away from its samples."""

    def __init__(self, reward: torch.nn.Module) -> None:
        super().__init__()
        self.reward = reward
        self.images: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        self.images.append(images.detach())
        scores: torch.Tensor = self.reward(images, prompts)
        return scores

    def taken(self) -> tuple[float, ...]:
        """The root mean square differences of the update that has just ended."""
        samples, *renoised = self.images
        self.images = []
        return tuple(float((images - samples).square().mean().sqrt()) for images in renoised)


def make_judge(task: Task, sampler: DifferentiableSampler) -> Callable[[], tuple[float, float]]:
    """Says the kilobytes and the alignment of the held-out images, as the pipeline is when asked."""
    whole = DifferentiableSampler(sampler.pipe, num_inference_steps=task.steps, **sampler.call_kwargs)

    measure = emoji_judges.make_judge(whole, task.images, BYTES, ALIGNMENT)

    def judge() -> tuple[float, float]:
        means = measure()
        return -means[BYTES], means[ALIGNMENT]

    return judge


@cache
def base_point(task: Task) -> Point:
    """What the judges say of the base model, where every run starts: a fresh LoRA changes nothing."""
    trainer, _ = make_trainer(task, task.methods[0], rate=1.0, seed=0)
    return Point(0, 0, 0, *make_judge(task, trainer.sampler)())


def count_calls(sampler: DifferentiableSampler) -> Callable[[], int]:
    """Says how often the denoiser ran since it was last asked, recomputation in the backward pass included.

    The first layer is watched: it runs in a real call only, not where the sampler leaves one empty.
    """
    calls: Counter[str] = Counter()
    sampler.pipe.unet.conv_in.register_forward_hook(lambda *_: calls.update(["denoiser"]))
    return lambda: calls.pop("denoiser", 0)


def time_updates(task: Task, runs: Path) -> None:
    """Writes how many seconds of processor and of wall time an update of each method takes, the methods taking turns.

    One machine, one thread, all within minutes: fairer than the clock of runs that lie hours apart.
    """
    timed = [method for method in task.methods if method.timed]
    if read_seconds(task, runs).keys() >= {method.name for method in timed}:
        return
    trainers = {}
    for method in timed:
        trainers[method.name], _ = make_trainer(task, method, rate=1e-9, seed=0)
        if method.timed_as is not None:
            trainers[method.name].learner = build_learner(method.timed_as, load_catalog())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    rounds = {method.name: method.rounds or task.rounds for method in timed}
    for number in range(max(rounds.values())):
        for name, trainer in trainers.items():
            if number >= rounds[name]:
                continue
            processor, wall = time.process_time(), time.perf_counter()
            trainer.train_step()
            taken[name].append((time.process_time() - processor, time.perf_counter() - wall))
    middle = {method.name: fmean if method.rounds else median for method in timed}
    seconds = {
        name: {"processor": middle[name](one for one, _ in pairs), "wall": middle[name](one for _, one in pairs)}
        for name, pairs in taken.items()
    }
    seconds_file(task, runs).write_text(json.dumps(seconds), encoding="utf-8")


# Tables and image


def runs_of(task: Task, method: Method, runs: Path) -> list[Run]:
    """The method's runs at its best rate, those that have been made."""
    stem = f"{method.name.replace(' ', '-')}_"
    searched = [read_run(file) for file in (runs / task.name).glob(f"{stem}*_{task.seeds[0]}.json")]
    if not searched:
        return []
    rate = min(searched, key=Run.rank).learning_rate
    return [read_run(file) for file in sorted((runs / task.name).glob(f"{stem}{rate:g}_*.json"))]


def seconds_file(task: Task, runs: Path) -> Path:
    return runs / f"seconds-{task.name}.json"


def read_seconds(task: Task, runs: Path) -> dict[str, float]:
    """Method -> seconds of processor time of an update; empty where nothing was timed yet."""
    file = seconds_file(task, runs)
    if not file.is_file():
        return {}
    return {name: pair["processor"] for name, pair in json.loads(file.read_text(encoding="utf-8")).items()}


def print_ends(task: Task, runs: Path) -> None:
    """Where equal steps have led, and what they have cost."""
    seconds = read_seconds(task, runs)
    print(f"\n{task.name}: after {task.optimizer_steps} optimiser steps\n")
    print_header(
        "method",
        "rate",
        "seeds",
        "optimiser steps",
        "denoiser calls",
        "seconds",
        "of the first",
        "bytes, %",
        "alignment, %",
    )
    first = math.nan
    for method in task.methods:
        made = runs_of(task, method, runs)
        ends = [run.points[-1] for run in made]
        taken = [point.updates * seconds[method.name] for point in ends if method.name in seconds]
        first = fmean(taken) if method is task.methods[0] and taken else first
        print_row(
            *(method.name, made[0].learning_rate if made else "-", len(made)),
            spread([point.optimizer_steps for point in ends], ".1f"),
            spread([point.calls for point in ends], ".0f"),
            *(spread(taken, ".1f"), f"{fmean(taken) / first:.2f}" if taken else "-"),
            spread([change(run, point) for run, point in zip(made, ends, strict=True)], ".1f"),
            spread([kept(run, point) for run, point in zip(made, ends, strict=True)], ".1f"),
        )


def print_marks(task: Task, runs: Path) -> None:
    """What the way to the mark has cost, over those seeds that reach it."""
    seconds = read_seconds(task, runs)
    print(f"\n{task.name}: real files {1 - MARK:.0%} smaller, alignment above {FLOOR:.0%}\n")
    columns = ("method", "rate", "reached", "optimiser steps", "denoiser calls", "seconds", "of the first")
    print_header(*columns, "alignment at these bytes, %")
    first = math.nan
    for method in task.methods:
        made = runs_of(task, method, runs)
        marks = [point for run in made if (point := run.at_mark())]
        taken = [point.updates * seconds[method.name] for point in marks if method.name in seconds]
        first = fmean(taken) if method is task.methods[0] and taken else first
        print_row(
            *(method.name, made[0].learning_rate if made else "-", f"{len(marks)} of {len(made)}"),
            spread([point.optimizer_steps for point in marks], ".1f"),
            spread([point.calls for point in marks], ".0f"),
            *(spread(taken, ".1f"), f"{fmean(taken) / first:.2f}" if taken else "-"),
            spread([kept(run, point) for run in made if (point := run.at_bytes())], ".1f"),
        )


def print_drifts(tasks: Sequence[Task], runs: Path) -> None:
    places = (2, 3, 4, 6, 8, 12, 16)
    print("\nDrift from the samples at an optimiser step of a rollout: median over rollouts\n")
    print_header("comparison", "method", *places)
    for task in tasks:
        for method in task.methods:
            drifts = [drift for run in runs_of(task, method, runs) for drift in run.drifts]
            if isinstance(method.method, PrefixReuse) and drifts:
                cells = [[drift[place - 2] for drift in drifts if len(drift) > place - 2] for place in places]
                print_row(task.name, method.name, *(f"{median(cell):.3f}" if cell else "" for cell in cells))


def save_image(race: Task, slow: Task, runs: Path, image: Path) -> None:
    """The race over calls, over seconds and as alignment over bytes; the slow comparison over seconds.

    Means over seeds, as far as all of them go; bars are standard deviations.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (by_calls, by_seconds), (quality, slowly) = figure.subplots(2, 2)
    draw_all(by_calls, race, runs, lambda _: lambda _, point: point.calls, change)
    draw_all(by_seconds, race, runs, seconds_when, change)
    draw_all(quality, race, runs, lambda _: change, kept)
    draw_all(slowly, slow, runs, seconds_when, change)
    bytes_label, seconds_label = "real JPEG bytes, held-out prompts, change in %", "seconds of processor time"
    by_calls.set(title="each at its own best learning rate", xlabel="denoiser calls", ylabel=bytes_label)
    by_seconds.set(title="the same over time", xlabel=seconds_label, ylabel=bytes_label)
    quality.set(title="the same: what the bytes cost", xlabel=bytes_label, ylabel="held-out alignment, % of the base's")
    slowly.set(title=f"all at {slow.rates[0]:g}, DRaFT-1 and prefix reuse", xlabel=seconds_label, ylabel=bytes_label)
    for axes in (by_calls, by_seconds, slowly):
        axes.axhline(100 * (MARK - 1), color="black", linewidth=0.8, linestyle=":")
    quality.axhline(100 * FLOOR, color="black", linewidth=0.8, linestyle=":")
    quality.axvline(100 * (MARK - 1), color="black", linewidth=0.8, linestyle=":")
    quality.invert_xaxis()
    figure.legend(handles=labelled(by_calls, slowly), loc="outside lower center", ncols=6, fontsize="small")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)


def save_prefix_image(runs: Path, image: Path) -> None:
    """Real bytes over seconds with 20 and with 50 sampler steps."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, task in zip(panels, PREFIXES, strict=True):
        draw_all(axes, task, runs, seconds_when, change, [method.name for method in PREFIXES[0].methods])
        axes.axhline(100 * (MARK - 1), color="black", linewidth=0.8, linestyle=":")
        axes.set(title=f"{task.steps} sampler steps, all at {task.rates[0]:g}", xlabel="seconds of processor time")
    panels[0].set(ylabel="real JPEG bytes, held-out prompts, change in %")
    figure.legend(handles=labelled(*panels), loc="outside lower center", ncols=5, fontsize="small")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)


def labelled(*panels: Axes) -> list[Any]:
    """What the panels show, each label once."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values())


def draw_all(
    axes: Axes,
    task: Task,
    runs: Path,
    make_x: Callable[[float], Value],
    y: Value,
    names: Sequence[str] = RACERS,
) -> None:
    """A line for each method that has been run; `make_x` is told the seconds of its updates.

    Arguments:
        names: what is drawn; each has one colour in all panels.
    """
    seconds = read_seconds(task, runs)
    for method in task.methods:
        if method.name in names and (made := runs_of(task, method, runs)):
            x = make_x(seconds.get(method.name, math.nan))
            draw(axes, made, x, y, COLOURS[names.index(method.name)])


Value = Callable[[Run, Point], float]


def change(run: Run, point: Point) -> float:
    """Of the real bytes, in percent."""
    return 100 * (point.kilobytes / run.points[0].kilobytes - 1)


def kept(run: Run, point: Point) -> float:
    """Of the alignment, in percent."""
    return 100 * point.alignment / run.points[0].alignment


def seconds_when(each: float) -> Value:
    """Of an update, times the updates."""
    return lambda _, point: each * point.updates


def draw(axes: Axes, runs: Sequence[Run], x: Value, y: Value, colour: str) -> None:
    """Means over seeds at the evaluations that all of them have, with standard deviations."""
    columns = list(zip(*([(x(run, point), y(run, point)) for point in run.points] for run in runs), strict=False))
    xs = [[one for one, _ in column] for column in columns]
    ys = [[one for _, one in column] for column in columns]
    axes.errorbar(
        [fmean(one) for one in xs],
        [fmean(one) for one in ys],
        xerr=[deviation(one) for one in xs],
        yerr=[deviation(one) for one in ys],
        marker="o",
        markersize=3,
        capsize=2,
        linewidth=1.2,
        color=colour,
        label=runs[0].method,
    )


def deviation(values: Sequence[float]) -> float:
    """Their standard deviation; 0 of one, and of seconds that nobody has measured."""
    return stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else 0.0


def print_header(*columns: object) -> None:
    print_row(*columns)
    print_row(*("---" for _ in columns))


def print_row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
