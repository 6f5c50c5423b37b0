"""What a run is judged by: pictures of prompts it was not trained on, from the same seeds, and their scores.

Tensors wing. May import: objective, plan, protocols, sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from draft_core.objective import Objective
from draft_core.plan import StepPlan
from draft_core.sampler import DifferentiableSampler


@dataclass(frozen=True)
class Evaluation:
    """Pictures of some prompts and what each reward says of them.

    Arguments:
        prompts: P prompts.
        seeds: S seeds; every prompt has one picture from each.
        images: (P S, 3, H, W) in [0, 1] on the CPU, the pictures of one prompt side by side.
        scores: reward name -> (P S,) before its weight.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: torch.Tensor
    scores: Mapping[str, torch.Tensor]

    def means(self) -> dict[str, float]:
        """Reward name -> mean over all pictures."""
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
) -> Evaluation:
    """The evaluation of the pipeline as it is now; builds no graph.

    A picture depends on its prompt and its seed alone: plain diffusers makes the same one from
    `pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), ...)`.

    Arguments:
        batch_size: pictures made in one pass.
        autocast: makes the precision context that each pass runs in.
        progress: called with how many pictures are done, and of how many.
    """
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    plan = StepPlan(sampler.steps, frozenset())
    images, scores = [], []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        names = [prompt for prompt, _ in batch]
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in batch]
        with torch.no_grad(), autocast():
            samples = sampler(names, plan=plan, generator=generators).images
            scores.append(rewards(samples, names).each)
        images.append(samples.float().cpu())
        progress(first + len(batch), len(pairs))
    joined = {name: torch.cat([one[name] for one in scores]).cpu() for name in scores[0]}
    return Evaluation(tuple(prompts), tuple(seeds), torch.cat(images), joined)
