"""The best of several images of a prompt, by any reward: it needs no gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draft_core.errors import DraftError, RewardError, list_of_prompts, require_from_one
from draft_core.evaluation.evaluate import evaluate
from draft_core.rewards.objective import Objective
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.search.arguments import require_rewards, seeds_from


@dataclass(frozen=True)
class BestOfN:
    """What was drawn of P prompts from n seeds, and the K images of each prompt that were kept, the best first.

    Arguments:
        prompts: P prompts.
        tried: n seeds.
        totals: weighted sum of the rewards, (P, n).
        scores: reward name -> all its scores before its weight, (P, n).
        chosen: places of the kept images among the seeds, (P, K).
        images: the kept ones, (P, K, 3, H, W) in [0, 1] on the CPU; of a video its middle frame.
        first: the image of the first seed, which is drawn without a search, (P, 3, H, W).
    """

    prompts: tuple[str, ...]
    tried: tuple[int, ...]
    totals: Tensor
    scores: Mapping[str, Tensor]
    chosen: Tensor
    images: Tensor
    first: Tensor

    @property
    def seeds(self) -> tuple[tuple[int, ...], ...]:
        """The seeds of the kept images, K of each of the P prompts."""
        return tuple(tuple(self.tried[place] for place in places) for places in self.chosen.tolist())

    @property
    def best(self) -> dict[str, Tensor]:
        """Reward name -> scores of the kept images, (P, K)."""
        return {name: scores.gather(1, self.chosen) for name, scores in self.scores.items()}


def best_of_n(
    sampler: DifferentiableSampler,
    rewards: Objective,
    prompts: Sequence[str],
    n: int,
    *,
    keep: int = 1,
    seed: int = 0,
    batch_size: int = 4,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BestOfN:
    """Draws n images of each prompt and keeps the best, by the weighted sum of the rewards; builds no graph.

    The images are those that `evaluate` and `sample` draw from the seeds `seed` to `seed + n - 1`. A score that is NaN
    counts as the worst.

    Arguments:
        sampler: of the pipeline, with or without a LoRA.
        rewards: at least one, of any kind.
        prompts: P prompts, at least one.
        n: images of each prompt, 1 or more.
        keep: K, how many of them are kept, 1 to n.
        seed: the first seed, 0 or more.
        batch_size: images made in one call of the pipeline, 1 or more.
        autocast: makes the precision context that each call runs in.
        progress: called with how many images are done, and of how many.

    Raises:
        DraftError: if there is no reward or no prompt, or a number is out of its range.
        RewardError: if a reward fails or breaks its contract, or fewer than `keep` images of a prompt have a score.
        SamplerError: as `evaluate`.
    """
    prompts = list_of_prompts(prompts, where="best_of_n")
    require_rewards(rewards, where="best_of_n")
    for number, name in ((n, "n"), (keep, "keep"), (batch_size, "batch_size")):
        require_from_one(number, where=f"best_of_n: {name}")
    if keep > n:
        raise DraftError(f"it keeps {keep} of {n} images", where="best_of_n: keep", next=f"keep {n} or fewer")
    tried = seeds_from(seed, n, where="best_of_n: seed")
    totals, chosen, kept, first = [], [], [], []
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards.rewards}
    for place, prompt in enumerate(prompts):

        def told(done: int, total: int, before: int = place * n) -> None:
            progress(before + done, len(prompts) * n)

        drawn = evaluate(
            sampler, rewards, [prompt], tried, batch_size=batch_size, autocast=autocast, progress=told
        )  # a prompt at a time: only the kept images stay in memory
        total = rewards.total(drawn.scores, {})
        best = _best(total, keep, prompt)
        for name, values in drawn.scores.items():
            scores[name].append(values)
        totals.append(total)
        chosen.append(best)
        kept.append(drawn.images[best])
        first.append(drawn.images[0])
    return BestOfN(
        prompts=tuple(prompts),
        tried=tried,
        totals=torch.stack(totals),
        scores={name: torch.stack(values) for name, values in scores.items()},
        chosen=torch.stack(chosen),
        images=torch.stack(kept),
        first=torch.stack(first),
    )


def _best(totals: Tensor, keep: int, prompt: str) -> Tensor:
    """The places of the `keep` largest, in falling order; of equal ones the first."""
    ranked = totals.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    scored = int((~totals.isnan()).sum())
    if scored < keep:
        raise RewardError(
            f"{len(totals) - scored} of {len(totals)} images of {prompt!r} have the score NaN",
            where="best_of_n",
            next="look at the reward with `draft rewards check`",
        )
    return ranked.argsort(descending=True, stable=True)[:keep]
