"""What search without training gains and costs on the embedded model: best of 4 and 16, and optimised noise.

    python benchmarks/search.py            # writes its table into docs/how-to/search-without-training.md; minutes

Every image is searched for by `emoji-clip`; `emoji-judge`, a network trained apart from it, is asked as well. A row's
mean is over prompts and three starts of each. Its gain over the plain images is paired by prompt and start; the
standard error is over prompts. Diversity is the mean distance between the three images of a prompt. Seconds are of the
processor, on one thread, for one image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import markdown, publish
from torch import Tensor

from draft_core import (
    Ascent,
    DifferentiableSampler,
    Objective,
    best_of_n,
    load_catalog,
    load_pipeline,
    load_reward,
    optimise_noise,
)
from draft_core.evaluation.image_measures import diversity
from draft_core.recipe.resolve import resolve_prompts
from draft_core.reporting.image_grid import draw_grid

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "search-without-training.md"
IMAGE = PAGE.parents[1] / "images" / "search.png"
PROMPTS, EVERY = "emoji-hard", 4  # every fourth of the list
STEPS, GUIDANCE = 4, 1.0
N, STARTS = 16, 3  # seeds of a search, and searches of a prompt
COUNTS, ITERATIONS = (4, 16), (10, 25, 50)
SHOWN = 7  # prompts in the image


@dataclass(frozen=True)
class Row:
    """One way to search: its images (P, S, 3, H, W), scores (P, S), and what one image took."""

    name: str
    images: Tensor
    clip: Tensor
    judge: Tensor
    runs: str
    seconds: float


class Kept(torch.nn.Module):
    """Scores nothing, and keeps every image that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.images.append(images.detach().clone())
        return torch.zeros(len(images))


def by_seeds(sampler: DifferentiableSampler, prompts: list[str], rewards: Objective) -> list[Row]:
    """Plain images, and the best of several, from one set of draws: each search has seeds of its own."""
    begin = time.process_time()
    found = [best_of_n(sampler, rewards, prompts, N, keep=N, seed=N * start) for start in range(STARTS)]
    seconds = (time.process_time() - begin) / (len(prompts) * STARTS * N)
    clip, judge = (torch.stack([part.scores[name] for part in found], 1) for name in ("emoji-clip", "emoji-judge"))
    order = torch.stack([part.chosen.argsort() for part in found], 1)  # place of every seed among the sorted images
    images = torch.stack([part.images for part in found], 1)
    rows = []
    for count in (1, *COUNTS):
        best = clip[..., :count].argmax(-1, keepdim=True)
        place = order.gather(-1, best)[..., None, None, None].expand(-1, -1, 1, *images.shape[3:])
        kept = images.gather(2, place)[:, :, 0]
        name = "plain" if count == 1 else f"best of {count}"
        chosen = [scores.gather(-1, best)[..., 0] for scores in (clip, judge)]
        rows.append(Row(name, kept, chosen[0], chosen[1], f"{count}", count * seconds))
    return rows


def by_noise(sampler: DifferentiableSampler, prompts: list[str], rewards: Objective, kept: Kept) -> list[Row]:
    """The best iterates of the first 10, 25 and 50, from the seeds with which the other searches begin."""
    kept.images.clear()
    begin = time.process_time()
    seeds = [N * start for start in range(STARTS)]
    ascent = Ascent(iterations=max(ITERATIONS))
    found = optimise_noise(sampler, rewards, prompts, seeds, ascent=ascent, batch_size=STARTS)
    seconds = (time.process_time() - begin) / (len(prompts) * STARTS * (ascent.iterations + 1))
    print(f"norms at the end {float(found.norms[..., -1].mean()):.4f}, largest {float(found.norms.max()):.4f}")
    of_prompts = torch.stack(kept.images).view(len(prompts), ascent.iterations + 1, *kept.images[0].shape)
    images = of_prompts.transpose(1, 2)
    rows = []
    for count in ITERATIONS:
        best = found.totals[..., : count + 1].argmax(-1, keepdim=True)
        place = best[..., None, None, None].expand(-1, -1, 1, *images.shape[3:])
        clip, judge = (found.scores[name].gather(-1, best)[..., 0] for name in ("emoji-clip", "emoji-judge"))
        chosen = images.gather(2, place)[:, :, 0]
        runs = f"{count + 1}, {count} of them back"
        rows.append(Row(f"noise, {count} iterations", chosen, clip, judge, runs, (count + 1) * seconds))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The table of the page."""
    heads = ["", "`emoji-clip`", "gain", "`emoji-judge`", "gain", "diversity", "runs of the sampler", "seconds"]
    plain = rows[0]
    lines = []
    for row in rows:
        cells = [row.name]
        for now, before in ((row.clip, plain.clip), (row.judge, plain.judge)):
            gain = (now - before).mean(1)  # of every prompt
            error = gain.std() / len(gain) ** 0.5
            cells += [f"{now.mean():.3f}", "" if row is plain else f"{gain.mean():+.3f} ± {error:.3f}"]
        lines.append([*cells, f"{diversity(row.images).mean():.3f}", row.runs, f"{row.seconds:.2f}"])
    return markdown(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=EVERY, help="prompts of the list to take: every so many")
    parser.add_argument("--print", action="store_true", help="write no page")
    words = parser.parse_args()
    torch.set_num_threads(1)
    catalog = load_catalog()
    prompts = resolve_prompts(PROMPTS, catalog)[:: words.every]
    print(len(prompts), "prompts:", prompts)
    pipe = load_pipeline("emoji", catalog=catalog)
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    kept = Kept()
    judged = {name: load_reward(name, catalog=catalog) for name in ("emoji-clip", "emoji-judge")}
    rewards = Objective({**judged, "kept": kept}, {"emoji-judge": 0.0, "kept": 0.0})
    rows = by_seeds(sampler, prompts, rewards)
    print(table(rows), flush=True)
    rows += by_noise(sampler, prompts, rewards, kept)
    publish({"gains": table(rows)}, None if words.print else PAGE)
    if not words.print:
        shown = [(prompt, [row.images[place, 0] for row in rows]) for place, prompt in enumerate(prompts[:SHOWN])]
        draw_grid(shown, headings=[row.name.removesuffix(" iterations") for row in rows]).save(IMAGE)


if __name__ == "__main__":
    main()
