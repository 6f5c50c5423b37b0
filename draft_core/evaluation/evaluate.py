"""What a run is judged by: images of held-out prompts from fixed seeds, their scores, and what became of them.

A reward that is optimised says nothing of what was lost. So at fixed intervals the same images are drawn again
and scored by rewards that are not trained on, and their diversity, their distance from the base model's, their
colour and their detail are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draft_core.plan import StepPlan
from draft_core.rewards.objective import Objective
from draft_core.sampling.sampler import DifferentiableSampler


@dataclass(frozen=True)
class Evaluation:
    """Images of some prompts and what each reward says of them.

    Arguments:
        prompts: P prompts.
        seeds: S seeds; every prompt has one image from each.
        images: (P S, 3, H, W) in [0, 1] on the CPU, those of one prompt side by side; of a video its middle frame.
        scores: reward name -> (P S,) before its weight.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor
    scores: Mapping[str, Tensor]

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all images."""
        return {name: float(scores.mean()) for name, scores in self.scores.items()}


def evaluate(
    sampler: DifferentiableSampler,
    rewards: Objective,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = lambda part: [part],
) -> Evaluation:
    """The evaluation of the pipeline as it is now; builds no graph.

    A image depends on its prompt and its seed alone: plain diffusers makes the same one from
    `pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), ...)`.

    Arguments:
        batch_size: images made in one pass.
        autocast: makes the precision context that each pass runs in.
        progress: called with how many images are done, and of how many.
        share: (place, count): this process makes every `count`-th image, from number `place` on; all make equally
            many, some of them twice where they do not come out even.
        gather: gives what each process made, by place.
    """
    everything = [(prompt, seed) for prompt in prompts for seed in seeds]
    place, count = share
    rounds = math.ceil(len(everything) / count)
    pairs = [everything[(turn * count + place) % len(everything)] for turn in range(rounds)]
    plan = StepPlan(sampler.steps, frozenset())
    images, scores = [], []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        names = [prompt for prompt, _ in batch]
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in batch]
        with torch.no_grad(), autocast():
            samples = sampler(names, plan=plan, generator=generators).images
            scores.append(rewards(samples, names).per_reward)
        images.append(_still(samples).float().cpu())
        progress(min((first + len(batch)) * count, len(everything)), len(everything))
    joined = {name: torch.cat([one[name] for one in scores]).cpu() for name in scores[0]}
    parts = gather((torch.cat(images), joined))
    return Evaluation(
        tuple(prompts),
        tuple(seeds),
        _dealt([images for images, _ in parts], len(everything)),
        {name: _dealt([each[name] for _, each in parts], len(everything)) for name in joined},
    )


def _dealt(parts: Sequence[Tensor], total: int) -> Tensor:
    """The first `total` of what was dealt out by turns, in its order again."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:total]


def _still(images: Tensor) -> Tensor:
    """Images as they are; of videos (N, F, 3, H, W) the middle frame."""
    return images if images.ndim == 4 else images[:, images.shape[1] // 2]
