"""A real encoder's bytes, which have no gradient, lowered through a surrogate, and what an old surrogate is worth.

    python benchmarks/surrogate.py                     # the runs on the embedded model, then tables and diagram
    python benchmarks/surrogate.py --runs FOLDER       # where the runs lie; finished ones are read, others go on
    python benchmarks/surrogate.py --no-training       # of the checkpoints that the runs have so far

All runs train on `jpeg-size`, the bytes that Pillow writes, through a surrogate; `emoji-clip` only judges. `beside`
trains on `emoji-preference` as well. `held`, `beside` and `loose` ask the encoder about the images of every update.
`never` asks it about the images of the warm-up alone, and `few` likewise, about an eighth of them. At every checkpoint
surrogate, encoder and alignment judge the same images: of all held-out prompts, from noise that no evaluation of the
run has seen. The diagram is docs/images/surrogate.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paired import gains_of_prompts, standard_error

from draft_core import (
    DifferentiableSampler,
    Objective,
    StepPlan,
    load_catalog,
    load_pipeline,
    load_recipe,
    load_reward,
    run_recipe,
)
from draft_core.adapters.lora import add_lora, set_lora_state
from draft_core.recipe.resolve import resolve_prompts
from draft_core.reporting.run_record import METRICS, read_rows
from draft_core.surrogates.fitting import rank_correlation
from draft_core.surrogates.prompt_features import PromptFeatures
from draft_core.surrogates.settings import SurrogateSettings
from draft_core.surrogates.surrogate import Surrogate
from draft_core.training.checkpoints import checkpoints, read_checkpoint
from draft_core.training.step_report import StepReport

DIAGRAM = Path(__file__).parents[1] / "docs" / "images" / "surrogate.png"
REWARD, ALIGNMENT, QUALITY = "jpeg-size", "emoji-clip", 80
BLUE, RED = "#14507d", "#b3460b"
LEAST_FALL, LEAST_ALIGNMENT, MOST_QUERIES = 0.08, 0.93, 1000
NOISE = (100, 101)  # seeds of the judged images of each prompt; evaluations of the runs take 0 and 1
RANK, STEPS = 8, 4
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Kind:
    """A setting whose runs are compared.

    Arguments:
        title: in tables and diagram.
        refresh: updates from one question to the encoder to the next; 0 never asks after the warm-up.
        warmup: images that the encoder is asked about before the first update.
        kl: weight of the KL divergence.
        updates, every: how many there are, and from one checkpoint to the next.
        seeds: of its runs.
        quality: weight of `emoji-preference`, which is trained on beside the bytes.
    """

    title: str
    refresh: int
    warmup: int
    kl: float
    updates: int
    every: int
    seeds: tuple[int, ...]
    quality: float = 0.0


KINDS = {
    "held": Kind("refresh: 1, warmup: 256, kl: 2.5", 1, 256, 2.5, 45, 15, (0, 1)),
    "beside": Kind("refresh: 1, warmup: 256, kl: 1, preference", 1, 256, 1.0, 52, 13, (0, 1, 2), quality=0.025),
    "loose": Kind("refresh: 1, warmup: 256, kl: 1", 1, 256, 1.0, 40, 20, (0,)),
    "never": Kind("refresh: 0, warmup: 256, kl: 1", 0, 256, 1.0, 40, 20, (0,)),
    "few": Kind("refresh: 0, warmup: 32, kl: 1", 0, 32, 1.0, 60, 10, (0,)),
}


@dataclass(frozen=True)
class Judged:
    """Held-out images at one update: means, and how surrogate and encoder agree on them.

    Arguments:
        update, queries: so far.
        size: kB of the files.
        guess: what the surrogate takes them for, kB; NaN before the first update, when there is none.
        alignment: cosine of `emoji-clip`.
        agreement: Spearman of surrogate and encoder.
        sizes: kB of each file, (N,).
        alignments: of each, (N,).
    """

    update: int
    queries: int
    size: float
    guess: float
    alignment: float
    agreement: float
    sizes: list[float]
    alignments: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/surrogate"))
    parser.add_argument("--no-training", action="store_true", help="read the runs as they are")
    arguments = parser.parse_args()
    catalog = load_catalog()
    judge = Judge()
    runs: dict[str, dict[int, list[Judged]]] = {name: {} for name in KINDS}
    for name, kind in KINDS.items():
        for seed in kind.seeds:
            folder = arguments.runs / f"{name}-{seed}"
            if not arguments.no_training and not (folder / "lora").is_dir():
                run_recipe(load_recipe(recipe(kind, seed, folder.absolute()), catalog=catalog), catalog)
            if folder.is_dir():
                runs[name][seed] = judge(folder)
                print_run(f"{kind.title}, seed {seed}", runs[name][seed])
    save_diagram(runs, DIAGRAM)


def recipe(kind: Kind, seed: int, output: Path) -> dict[str, Any]:
    return {
        "model": {
            "pretrained": "emoji",
            "num_inference_steps": STEPS,
            "guidance_scale": 1.0,
            "lora": {"rank": RANK},
        },
        "prompts": "emoji-train",
        "method": {"kind": "draft-k", "k": 1},
        "rewards": [
            {"kind": REWARD, "quality": QUALITY, "surrogate": {"refresh": kind.refresh, "warmup": kind.warmup}},
            *([{"kind": "emoji-preference", "weight": kind.quality}] if kind.quality else []),
        ],
        "metrics": [{"kind": ALIGNMENT}],
        "train": {"steps": kind.updates, "batch_size": 8, "learning_rate": 1.0e-3, "seed": seed},
        "regularizers": {"kl": kind.kl},
        "evaluation": {
            "prompts": "emoji-heldout",
            "count": 16,
            "images_per_prompt": 2,
            "every": kind.every,
            "on_collapse": "warn",
        },
        "checkpoint": {"every": kind.every, "keep": 99},
        "output": str(output),
    }


class Judge:
    """Draws and scores held-out images of a run's checkpoints; what it has found stays in the run's folder."""

    def __init__(self) -> None:
        prompts = resolve_prompts("emoji-heldout", load_catalog())
        self.prompts = [prompt for prompt in prompts for _ in NOISE]
        self.objective = Objective({REWARD: load_reward(REWARD, quality=QUALITY), ALIGNMENT: load_reward(ALIGNMENT)})
        pipe = load_pipeline("emoji")
        pipe.set_progress_bar_config(disable=True)
        add_lora(pipe, rank=RANK)  # which changes nothing before a checkpoint is loaded
        self.sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=1.0)
        self.features = PromptFeatures(pipe)
        self.base = self.judged(0, 0, None)

    def __call__(self, folder: Path) -> list[Judged]:
        """The base model, and every checkpoint of a run."""
        cache = folder / "judged.json"
        known = json.loads(cache.read_text()) if cache.is_file() else {}
        rows = read_rows(folder / METRICS, StepReport)
        for path in checkpoints(folder / CHECKPOINTS):
            if path.name not in known:
                saved = read_checkpoint(path)
                set_lora_state(self.sampler.pipe, dict(saved.adapter))
                surrogate = Surrogate(SurrogateSettings(), seed=0, within_prompt=False)
                surrogate.load_state_dict(saved.learner["state"]["surrogates"][REWARD])
                update = int(path.name)
                queries = sum(row.reward_queries for row in rows if row.update <= update)
                known[path.name] = asdict(self.judged(update, queries, surrogate))
                cache.write_text(json.dumps(known))
        return [self.base, *(Judged(**known[name]) for name in sorted(known))]

    @torch.no_grad()
    def judged(self, update: int, queries: int, surrogate: Surrogate | None) -> Judged:
        plan, size = StepPlan(STEPS, frozenset()), 16
        found: dict[str, list[float]] = {REWARD: [], ALIGNMENT: [], "guess": []}
        for first in range(0, len(self.prompts), size):
            prompts = self.prompts[first : first + size]
            noise = [
                torch.Generator().manual_seed(1000 * ((first + place) // len(NOISE)) + NOISE[place % len(NOISE)])
                for place in range(len(prompts))
            ]
            rollout = self.sampler(prompts, plan=plan, generator=noise)
            for name, values in self.objective(rollout.images, prompts).per_reward.items():
                found[name] += values.tolist()
            if surrogate is not None:
                seen = surrogate.input_of(rollout.images, rollout.decoded)
                found["guess"] += surrogate.score(seen, self.features(prompts)).tolist()
        sizes, guesses = ([-value for value in found[name]] for name in (REWARD, "guess"))
        return Judged(
            update,
            queries,
            fmean(sizes),
            fmean(guesses) if guesses else float("nan"),
            fmean(found[ALIGNMENT]),
            rank_correlation(guesses, sizes) if guesses else float("nan"),
            sizes,
            found[ALIGNMENT],
        )


def print_run(title: str, run: list[Judged]) -> None:
    base = run[0]
    print(
        f"\n{title}\n\n| updates | queries | kB | change | surrogate, kB | Spearman | alignment | of the base model's |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in run:
        fall, kept = 1 - row.size / base.size, row.alignment / base.alignment
        reached = fall >= LEAST_FALL and kept >= LEAST_ALIGNMENT and row.queries <= MOST_QUERIES
        of_sizes = gains_of_prompts(base.sizes, row.sizes, len(NOISE))
        of_alignments = gains_of_prompts(base.alignments, row.alignments, len(NOISE))
        cells = (
            row.update,
            row.queries,
            f"{row.size:.3f}",
            f"{-fall:+.1%} ± {100 * standard_error(of_sizes) / base.size:.1f}",
            f"{row.guess:.3f}",
            f"{row.agreement:.2f}",
            f"{row.alignment:.3f}",
            f"{kept:.1%} ± {100 * standard_error(of_alignments) / base.alignment:.1f}",
        )
        print(f"| {' | '.join(map(str, cells))} |{'  <- reached' if reached else ''}")


def save_diagram(runs: Mapping[str, Mapping[int, list[Judged]]], path: Path) -> None:
    """What surrogate and encoder say of the same held-out images, over updates."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, of_seeds) in zip(figure.subplots(1, len(runs), sharey=True), runs.items(), strict=True):
        for number, run in enumerate(of_seeds.values()):
            updates = [row.update for row in run]
            labels = ("surrogate", "real encoder") if not number else (None, None)
            axes.plot(updates, [row.guess for row in run], color=RED, marker=".", label=labels[0])
            axes.plot(updates, [row.size for row in run], color=BLUE, marker=".", label=labels[1])
        title = KINDS[name].title + (f", {len(of_seeds)} seeds" if len(of_seeds) > 1 else "")
        axes.set_title(title.replace(", kl", "\nkl"), fontsize=10)
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("kB of a held-out image")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
