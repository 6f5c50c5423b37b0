"""Two steps without guidance beside twenty with it, by a judge that no tuning saw: a table on the terminal.

    python benchmarks/two_steps.py [RUN OR LORA ...]     # minutes; each of them beside the shipped emoji-two-steps

Six images of each of 54 things that nothing was tuned on, from noise that no evaluation of a recipe draws. Errors are
over things; the difference from the twenty steps is paired by thing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import torch
from paired import gains_of_prompts, standard_error
from tables import markdown

from draft_core import load_catalog, load_reward, sample
from draft_core.recipe.resolve import resolve_prompts

PROMPTS, IMAGES, SEED = "emoji-hard", 6, 5000
JUDGE, BESIDE = "emoji-judge", ("emoji-judge-top1", "emoji-clip")
HEADER = ("", f"`{JUDGE}`", "minus twenty steps", *(f"`{name}`" for name in BESIDE))


def main() -> None:
    """Draws, judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loras", nargs="*", type=Path, metavar="RUN OR LORA")
    loras = parser.parse_args().loras
    ways = {
        "emoji, 20 steps, guidance 4": ("emoji", None, 20, 4.0),
        "emoji-two-steps": ("emoji-two-steps", None, 2, 1.0),
    }
    ways.update({f"{lora}, two steps": ("emoji", lora, 2, 1.0) for lora in loras})
    rows, base = [], None
    for name, way in ways.items():
        scores = judged(*way)
        base = base or scores[JUDGE]
        rows.append((name, *cells(scores, base)))
        print(f"{name}: {rows[-1][1]}", flush=True)
    print(markdown(HEADER, rows))


def judged(pipeline: str, lora: Path | None, steps: int, guidance: float) -> dict[str, list[float]]:
    """Reward name -> its scores, those of one thing side by side."""
    prompts = list(resolve_prompts(PROMPTS, load_catalog()))
    drawn = sample(pipeline, prompts, lora=lora, images_per_prompt=IMAGES, steps=steps, guidance=guidance, seed=SEED)
    images = drawn[0].flatten(0, 1)
    texts = [prompt for prompt in prompts for _ in range(IMAGES)]
    with torch.no_grad():
        return {name: load_reward(name)(images, texts).tolist() for name in (JUDGE, *BESIDE)}


def cells(scores: dict[str, list[float]], base: list[float]) -> list[str]:
    """Of a row: the judge's mean and its error, its difference from the base model's, and the other means."""
    of_things, gains = (gains_of_prompts(before, scores[JUDGE], IMAGES) for before in ([0.0] * len(base), base))
    difference = f"{fmean(gains):+.3f} ± {standard_error(gains):.3f}" if scores[JUDGE] != base else ""
    own = f"{fmean(of_things):.3f} ± {standard_error(of_things):.3f}"
    return [own, difference, *(f"{fmean(scores[name]):.3f}" for name in BESIDE)]


if __name__ == "__main__":
    main()
