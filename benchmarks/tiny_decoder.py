"""What a tiny decoder for training gains on the embedded model: gradients, cost of an update, way to the mark.

    python plugins/emoji/training/train.py data --work runs/emoji
    python plugins/emoji/training/train.py tiny-decoder --work runs/emoji
    python benchmarks/tiny_decoder.py runs/emoji/tiny-decoder/model

The cosine is that of the LoRA's gradient through the tiny decoder to that through the model's own, of the same noise
and prompts; beside it that of two draws of noise, through the model's own. Updates take turns, on one thread, in
processor time. The way to the mark is that of `benchmarks/compare.py`: DRaFT-1 on three steps, judged by images of 20
steps that the model's own decoder makes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean, median

import compare
import torch
from compare import THREE_STEPS, Task, change, kept, run_once
from diffusers import AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from tables import markdown, spread

from draft_core import DifferentiableSampler, DraftK, Objective, load_catalog, load_pipeline, load_reward
from draft_core.adapters.lora import add_lora, trainable
from draft_core.cost.peak_memory import peak_memory
from draft_core.recipe.resolve import resolve_prompts

REWARDS = ("emoji-clip", "jpeg")
BATCH, RATE, MEBIBYTE = 4, 8e-3, 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    print(updates(options.decoder, (options.steps, 20), options.rounds), flush=True)
    print(cosines(options.decoder, range(options.noises), options.steps), flush=True)
    if options.seeds:
        print(marks(options.decoder, range(options.seeds), options.runs), flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("decoder", type=Path, help="folder of an AutoencoderTiny")
    parser.add_argument("--noises", type=int, default=6, help="draws of noise whose gradients are compared")
    parser.add_argument("--steps", type=int, default=3, help="of the sampler, whose last one is recorded")
    parser.add_argument("--rounds", type=int, default=5, help="updates that are timed")
    parser.add_argument("--seeds", type=int, default=3, help="runs to the mark; 0 for none")
    parser.add_argument("--runs", type=Path, default=Path("runs/tiny-decoder"))
    return parser.parse_args(arguments)


def samplers(decoder: Path, steps: int) -> dict[str, DifferentiableSampler]:
    """The embedded model with a LoRA, by its own decoder and by the tiny one."""
    pipe = load_pipeline("emoji")
    torch.manual_seed(0)
    add_lora(pipe, rank=8)
    tiny = AutoencoderTiny.from_pretrained(decoder).requires_grad_(False).eval()
    return {
        name: DifferentiableSampler(pipe, num_inference_steps=steps, guidance_scale=4.0, decoder=vae)
        for name, vae in (("own", None), ("tiny", tiny))
    }


def gradient(sampler: DifferentiableSampler, objective: Objective, seed: int) -> torch.Tensor:
    """Of the LoRA, in an update of DRaFT-1."""
    listed = resolve_prompts("emoji-train", load_catalog())
    prompts = Random(seed).sample(listed, BATCH)
    generators = [torch.Generator().manual_seed(1000 * seed + place) for place in range(BATCH)]
    rollout = sampler(prompts, plan=DraftK(k=1).plan(sampler.steps, Random(0)), generator=generators)
    scores = objective(rollout.images, rollout.prompts).total
    return torch.cat([part.flatten() for part in torch.autograd.grad(scores.mean(), [*trainable(sampler.pipe)])])


def cosines(decoder: Path, noises: Sequence[int], steps: int) -> str:
    rows = []
    for reward in REWARDS:
        objective = Objective({reward: load_reward(reward)})
        found = {
            name: [gradient(sampler, objective, seed) for seed in noises]
            for name, sampler in samplers(decoder, steps).items()
        }
        same = [cosine(one, other) for one, other in zip(found["own"], found["tiny"], strict=True)]
        means = cosine(*(torch.stack(each).mean(0) for each in found.values()))
        apart = [cosine(one, other) for one, other in combinations(found["own"], 2)]
        ratio = fmean(float(tiny.norm() / own.norm()) for own, tiny in zip(found["own"], found["tiny"], strict=True))
        rows.append([f"`{reward}`", spread(same, ".2f"), f"{means:.2f}", f"{ratio:.2f}", spread(apart, ".2f")])
    heads = ("reward", "cosine, same noise", "of the means", "norm, tiny to own", "cosine of two draws, own")
    return markdown(heads, rows)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def updates(decoder: Path, lengths: Sequence[int], rounds: int) -> str:
    """Seconds and peak memory of a gradient, `jpeg`."""
    rows, objective = [], Objective({"jpeg": load_reward("jpeg")})
    for steps in lengths:
        found = samplers(decoder, steps)
        taken: dict[str, list[float]] = {name: [] for name in found}
        for number in range(rounds + 1):
            for name, sampler in found.items():
                begun = time.process_time()
                gradient(sampler, objective, 0)
                taken[name] += [time.process_time() - begun] if number else []  # the first sets up
        own, tiny = (median(taken[name]) for name in found)
        peaks = [peak_memory(lambda: gradient(sampler, objective, 0)) / MEBIBYTE for sampler in found.values()]  # noqa: B023
        cells = (own, tiny, tiny / own, *peaks, peaks[1] / peaks[0])
        rows.append([f"DRaFT-1, {steps} steps", *(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in cells)])
    return markdown(("update", "s, own", "s, tiny", "ratio", "MiB, own", "MiB, tiny", "ratio"), rows)


def marks(decoder: Path, seeds: Sequence[int], runs: Path) -> str:
    """Updates, seconds and alignment where real files are 8 % smaller."""
    through_tiny = replace(THREE_STEPS, name=f"{THREE_STEPS.name}, tiny decoder", decoder=decoder)
    task = Task(name="tiny-decoder", steps=20, methods=(THREE_STEPS, through_tiny), rates=(RATE,), budget=60)
    made = {method.name: [run_once(task, method, RATE, seed, runs) for seed in seeds] for method in task.methods}
    compare.time_updates(task, runs)
    seconds = compare.read_seconds(task, runs)
    rows = []
    for name, found in made.items():
        points = [(run, point) for run in found if (point := run.at_bytes())]
        rows.append(
            [
                *(name, f"{sum(run.at_mark() is not None for run in found)} of {len(found)}", f"{seconds[name]:.2f}"),
                spread([point.updates for _, point in points], ".1f"),
                spread([point.updates * seconds[name] for _, point in points], ".1f"),
                spread([kept(run, point) for run, point in points], ".1f"),
                spread([change(run, run.points[-1]) for run in found], ".1f"),
            ]
        )
    heads = ("method", "kept the alignment", "s of an update", "updates", "seconds", "alignment at -8 %, %")
    return markdown((*heads, "bytes at the end, %"), rows)


if __name__ == "__main__":
    main()
