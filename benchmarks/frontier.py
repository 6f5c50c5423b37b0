"""Remedies against reward hacking on the embedded model: what is left of judge and diversity at equal trained reward.

    python benchmarks/frontier.py                # trains what is missing, about a minute a cell; then tables and image
    python benchmarks/frontier.py --seeds 1      # the first seed of each remedy
    python benchmarks/frontier.py --only none --only "kl 1"   # these remedies
    python benchmarks/frontier.py --reward palette   # the second trained reward
    python benchmarks/frontier.py --minutes 20   # begins no cell after that
    python benchmarks/frontier.py --plot         # trains nothing
    python benchmarks/frontier.py --prices       # times an update with each remedy, in turns
    python benchmarks/frontier.py --quick        # one update of two remedies, to see that it works

`jpeg`, minus the size of a file, is trained on, in three steps without guidance, by DRaFT-1 where the remedy says
nothing else: smaller files are soon bought with what the image shows. So is nearness to one colour, `palette`, by which
some of the remedies are tried once more. The judge is `emoji-judge`, a classifier that no
training saw, on prompts that were not trained on; the diversity is that of the images of a prompt. Each cell, a remedy,
a seed and a reward, is a line of docs/measurements/frontier/cells.jsonl. "interpolation" is the last LoRA of the
cell without a remedy at smaller scales, as `draft mix` makes it.

Cells are compared where the trained reward has risen by so much on held-out prompts, on monotone curves through the
evaluations, and with the cell of the same seed without a remedy: its judge is the remedy's gain.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from diffusers.utils import logging as diffusers_logging
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.interpolate import PchipInterpolator
from tables import in_turns, markdown, publish
from torch import set_num_threads
from transformers.utils import logging as transformers_logging

from draft_core import Objective, Trainer, build, evaluate, load_catalog, load_recipe, load_reward
from draft_core.evaluation.image_measures import diversity
from draft_core.recipe.resolve import resolve_prompts

JPEG, JUDGE = "jpeg", "emoji-judge"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measurements" / "frontier.md"
CELLS = ROOT / "docs" / "measurements" / "frontier" / "cells.jsonl"
PRICES = CELLS.with_name("prices.json")
IMAGE = ROOT / "docs" / "images" / "frontier.png"
SEEDS = (0, 1, 2, 3, 4)
SCALES = (0.25, 0.5, 0.75)
NONE, INTERPOLATION = "none", "interpolation"
RECIPE: dict[str, Any] = {
    "model": {"pretrained": "emoji", "num_inference_steps": 3, "guidance_scale": 1.0},
    "prompts": "emoji-train",
    "method": {"kind": "draft-k", "k": 1},
    "train": {"batch_size": 4, "learning_rate": 2.0e-3},
    "device": "cpu",
}
# What each remedy says otherwise; "entry" is of the trained reward's own, "beside" are further rewards.
REMEDIES: dict[str, dict[str, Any]] = {
    NONE: {},
    "half the rate": {"train": {"learning_rate": 1.0e-3}},
    "cap at -1.42 kB": {"entry": {"cap": -1.42}},
    "cap at the 0.75 quantile": {"entry": {"cap": {"quantile": 0.75}}},
    "cap at the 0.5 quantile": {"entry": {"cap": {"quantile": 0.5}}},
    "worst within 0.03": {"entry": {"worst_within": 0.03}},
    "kl 0.3": {"regularizers": {"kl": 0.3}},
    "kl 1": {"regularizers": {"kl": 1.0}},
    "kl 3": {"regularizers": {"kl": 3.0}},
    "kl relative 0.7": {"regularizers": {"kl_relative": 0.7}},
    "kl 1, gated": {"regularizers": {"kl": 1.0, "kl_gate": ["emoji-clip"]}, "metrics": [{"kind": "emoji-clip"}]},
    "kl 3, gated": {"regularizers": {"kl": 3.0, "kl_gate": ["emoji-clip"]}, "metrics": [{"kind": "emoji-clip"}]},
    "kl 3, anchor moved": {"regularizers": {"kl": 3.0, "kl_anchor": {"ema": 0.9}}},
    "target, radius 0.1": {"method": {"kind": "target", "radius": 0.1}},
    "a second reward": {
        "entry": {"weight": 2.0},
        "beside": [{"kind": "emoji-clip"}],
        "train": {"normalize": "gradient"},
    },
}


@dataclass(frozen=True)
class Trial:
    """A trained reward, and where its cells are compared.

    Arguments:
        entry: of the recipe.
        rises: of its mean on held-out prompts, those of the table.
        remedies: that it is tried with.
        most: the largest rise in the image.
    """

    entry: Mapping[str, Any]
    rises: tuple[float, ...]
    remedies: tuple[str, ...]
    most: float


TRIALS = {
    JPEG: Trial({"kind": JPEG}, (0.03, 0.06, 0.09), tuple(REMEDIES), 0.12),  # kB; the base model has -1.5
    "palette": Trial(
        {"kind": "palette", "colours": ["#e85d04"], "weight": 0.02},  # of CIE76; the base model has -82
        (2.0, 4.0, 6.0),
        (NONE, "cap at the 0.75 quantile", "cap at the 0.5 quantile", "kl 1", "kl relative 0.7", "a second reward"),
        8.0,
    ),
}


@dataclass(frozen=True)
class Size:
    """How much is trained and judged: updates, those between two evaluations, held-out prompts, images of each."""

    updates: int = 24
    every: int = 4
    prompts: int = 16
    images: int = 2


@dataclass(frozen=True)
class Point:
    """Held-out means somewhere on a run, and the updates or the scale of the LoRA that led there."""

    at: float
    trained: float
    judge: float
    diversity: float


@dataclass(frozen=True)
class Cell:
    """A remedy and a seed.

    Arguments:
        points: the base model first.
        reward: that was trained on.
    """

    remedy: str
    seed: int
    points: tuple[Point, ...]
    reward: str = JPEG

    def at_rise(self, rise: float) -> Point | None:
        """Where the trained reward has risen by so much, on a curve through the evaluations; None if nowhere.

        The judge falls faster and faster, so that a straight line between two evaluations lies below its curve, and
        the more so the further they are apart: it would count for a gain that a remedy is slow. The curve is a
        monotone cubic (Fritsch and Butland 1984), through those evaluations that are above all before them.
        """
        wanted, rising = self.points[0].trained + rise, list[Point]()
        for point in self.points:
            if not rising or point.trained > rising[-1].trained:
                rising.append(point)
        if len(rising) < 2 or wanted > rising[-1].trained:
            return None
        curve = PchipInterpolator(
            [point.trained for point in rising], [list(asdict(point).values()) for point in rising]
        )
        return Point(*map(float, curve(wanted)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, compares, and writes."""
    options = parse_arguments(arguments)
    set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    size, remedies = Size(), options.only or TRIALS[options.reward].remedies
    if options.quick:
        size, remedies = Size(updates=1, every=1, prompts=2, images=2), [NONE, "worst within 0.03"]
    if options.prices:
        measure_prices()
    elif not options.plot:
        end = time.monotonic() + 60 * options.minutes
        for seed in SEEDS[: options.seeds]:
            for remedy in remedies:
                if time.monotonic() < end:
                    train_missing(options.reward, remedy, seed, size, options.cells)
    cells = read(options.cells)
    tables = {"frontier" if reward == JPEG else f"frontier of {reward}": table(cells, reward) for reward in TRIALS}
    publish(tables, None if options.quick else PAGE)
    if not options.quick:
        draw(cells, IMAGE)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="only so many of the seeds; left out, all")
    parser.add_argument("--reward", default=JPEG, choices=TRIALS, help="that is trained on; jpeg if left out")
    parser.add_argument("--only", action="append", choices=REMEDIES, help="this remedy; may be said again")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many")
    parser.add_argument(
        "--plot", action="store_true", help="train nothing: table and image of the cells that are there"
    )
    parser.add_argument("--prices", action="store_true", help="train nothing, and time an update with each remedy")
    parser.add_argument("--quick", action="store_true", help="one update of two remedies, and no page")
    parser.add_argument("--cells", type=Path, default=CELLS, help="default docs/measurements/frontier/cells.jsonl")
    return parser.parse_args(arguments)


def train_missing(reward: str, remedy: str, seed: int, size: Size, file: Path) -> None:
    """Trains a cell, unless the file has it, and adds it; that without a remedy brings its interpolations."""
    if any((cell.reward, cell.remedy, cell.seed) == (reward, remedy, seed) for cell in read(file)):
        return
    plain = remedy != NONE or reward != JPEG
    made = [trained(reward, remedy, seed, size)] if plain else list(with_interpolations(seed, size))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write("".join(json.dumps(asdict(cell)) + "\n" for cell in made))
    print(f"{reward}, {remedy}, seed {seed}: {made[0].points[-1]}", flush=True)


def read(file: Path) -> list[Cell]:
    """The cells of a file, in its order; none if it is not there."""
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Cell(**{**row, "points": tuple(Point(**point) for point in row["points"])}) for row in rows]


# Training


def trained(reward: str, remedy: str, seed: int, size: Size, trainer: Trainer | None = None) -> Cell:
    """A run with its evaluations."""
    trainer = trainer or make_trainer(reward, remedy, seed, size)
    points = [judged(trainer, reward, size, 0)]
    points += [judged(trainer, reward, size, report.update) for report in trainer if report.update % size.every == 0]
    return Cell(remedy, seed, tuple(points), reward)


def with_interpolations(seed: int, size: Size) -> Iterator[Cell]:
    """The run on `jpeg` without a remedy, and its last LoRA at smaller scales."""
    trainer = make_trainer(JPEG, NONE, seed, size)
    whole = trained(JPEG, NONE, seed, size, trainer)
    yield whole
    between = []
    for scale in SCALES:
        with trainer.adapter.scaled(scale):
            between.append(judged(trainer, JPEG, size, scale))
    yield Cell(INTERPOLATION, seed, (whole.points[0], *between, whole.points[-1]))


def make_trainer(reward: str, remedy: str, seed: int, size: Size) -> Trainer:
    """Of the recipe with what the remedy says."""
    changed = dict(REMEDIES[remedy])
    train = {**RECIPE["train"], **changed.pop("train", {}), "steps": size.updates, "seed": seed}
    entry, beside = {**TRIALS[reward].entry, **changed.pop("entry", {})}, changed.pop("beside", [])
    return build(load_recipe({**RECIPE, **changed, "rewards": [entry, *beside], "train": train}))


def judged(trainer: Trainer, reward: str, size: Size, at: float) -> Point:
    """The held-out images as the model is now, always from the same noise."""
    measures = Objective({reward: trainer.objective.rewards[reward], JUDGE: load_reward(JUDGE)})
    held_out = resolve_prompts("emoji-heldout", load_catalog())
    prompts = held_out[:: len(held_out) // size.prompts][: size.prompts]
    found = evaluate(trainer.sampler, measures, prompts, range(size.images), batch_size=12)
    means = found.means()
    spread = float(diversity(found.images.reshape(len(prompts), size.images, *found.images.shape[1:])).mean())
    return Point(at, means[reward], means[JUDGE], spread)


def measure_prices(rounds: int = 5) -> None:
    """Times updates with each remedy in turns, by the seconds of the processor, and keeps shares of medians."""
    found = {}
    for reward, trial in TRIALS.items():
        size = Size(updates=rounds + 1)  # the first sets up
        taken = in_turns(
            {name: partial(next, iter(make_trainer(reward, name, 0, size))) for name in trial.remedies}, rounds
        )
        found[reward] = {name: round(seconds / taken[NONE], 3) for name, seconds in taken.items()}
        print(f"{reward}: {found[reward]}", flush=True)
    PRICES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# What came out


def table(cells: Sequence[Cell], reward: str) -> str:
    """By what judge and diversity have changed, of every remedy at every rise: means over seeds and errors.

    Beside the judge, in brackets, by how much it is above that of the same seed without a remedy.
    """
    heads = ["remedy", "seeds", "an update", "reward gained"]
    rises, cells = TRIALS[reward].rises, [cell for cell in cells if cell.reward == reward]
    heads += [f"{name} at +{rise:g}" for rise in rises for name in ("judge", "diversity")]
    rows = []
    without, prices = of_seeds(cells), read_prices(reward)
    for remedy in [NONE, INTERPOLATION, *(name for name in REMEDIES if name != NONE)]:
        of_remedy = [cell for cell in cells if cell.remedy == remedy]
        if not of_remedy:
            continue
        gained = [max(point.trained for point in cell.points) - cell.points[0].trained for cell in of_remedy]
        row = [remedy, str(len(of_remedy)), price(prices, remedy), with_error(gained)]
        for rise in rises:
            reached = {cell.seed: (cell.points[0], found) for cell in of_remedy if (found := cell.at_rise(rise))}
            judge = with_error([found.judge - base.judge for base, found in reached.values()])
            if remedy != NONE and (kept := saved(of_remedy, without, rise, "judge")):
                judge += f" ({with_error(kept)})"
            if len(reached) < len(of_remedy):
                judge += f"; {len(reached)} of {len(of_remedy)}"
            row += [judge, with_error([f.diversity / b.diversity - 1 for b, f in reached.values()], percent=True)]
        rows.append(row)
    return markdown(heads, rows)


def read_prices(reward: str) -> dict[str, float]:
    """Remedy -> seconds of an update, as a share of one without a remedy; empty before they are measured."""
    return json.loads(PRICES.read_text(encoding="utf-8")).get(reward, {}) if PRICES.is_file() else {}


def price(prices: Mapping[str, float], remedy: str) -> str:
    """For the table; a smaller scale of a LoRA that is there costs no update of its own."""
    share = prices.get(NONE if remedy == INTERPOLATION else remedy)
    return "-" if share is None else f"{share:.2f}"


def of_seeds(cells: Sequence[Cell]) -> dict[int, Cell]:
    """Seed -> its cell without a remedy."""
    return {cell.seed: cell for cell in cells if cell.remedy == NONE}


def saved(of_remedy: Sequence[Cell], without: Mapping[int, Cell], rise: float, name: str) -> list[float]:
    """By how much a measure is above that without a remedy, for each seed that reached the rise in both."""
    return [
        getattr(found, name) - getattr(bare, name)
        for cell in of_remedy
        if cell.seed in without and (found := cell.at_rise(rise)) and (bare := without[cell.seed].at_rise(rise))
    ]


def with_error(values: Sequence[float], *, percent: bool = False) -> str:
    """Their mean, and of two or more its standard error."""
    if not values:
        return "not reached"
    shape = "{:+.1%}" if percent else "{:+.3f}"
    mean = shape.format(fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {shape.format(error(values))[1:]}"


def error(values: Sequence[float]) -> float:
    """The standard error of a mean; 0 of one value."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def draw(cells: Sequence[Cell], file: Path) -> None:
    """By how much judge and diversity are above those without a remedy, over the rise of the trained reward."""
    order, measures = [INTERPOLATION, *(name for name in REMEDIES if name != NONE)], ("judge", "diversity")
    figure = Figure(figsize=(13, 5 * len(TRIALS)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (reward, trial) in zip(figure.subplots(len(TRIALS), 2), TRIALS.items(), strict=True):
        of_reward = [cell for cell in cells if cell.reward == reward]
        without, steps = of_seeds(of_reward), [trial.most * n / 12 for n in range(1, 13)]
        for axis, name in zip(axes, measures, strict=True):
            for place, remedy in enumerate(order):
                of_remedy = [cell for cell in of_reward if cell.remedy == remedy]
                # Shifted, so that error bars do not hide one another; only where all seeds have come.
                found = {rise + trial.most * place / 600: saved(of_remedy, without, rise, name) for rise in steps}
                found = {rise: values for rise, values in found.items() if values and len(values) == len(of_remedy)}
                if not found:
                    continue
                style = {"marker": ".", "label": remedy, "color": colormaps["tab20"](2 * place % 20 + place // 10)}
                means, errors = (
                    [fmean(values) for values in found.values()],
                    [error(values) for values in found.values()],
                )
                axis.errorbar(list(found), means, errors, **style)
            axis.axhline(0, color="black", linewidth=1, label=NONE)
            axis.set_xlabel(f"rise of {reward}, the trained reward")
            axis.set_ylabel(f"{JUDGE if name == 'judge' else name} above that without a remedy")
        axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
