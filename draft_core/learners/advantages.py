"""How much better than expected an image is: rewards, standardised by prompt or by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, Protocol

from draft_core.errors import RecipeError

ROUNDING = 1e-6  # of the largest reward: a spread below it is that of float32, and standardised would be noise


class Advantages(Protocol):
    """A rule by which the rewards of a batch become advantages."""

    def of(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """The advantage of each image: how many standard deviations its reward lies above what its prompt gives.

        Prompts of a list with columns come with these, `row_key`, so that each row is a prompt of its own.

        Rewards that are not finite have the advantage 0, and count for no other.
        """
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What it remembers between batches."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        ...


class ByPrompt:
    """Against the last rewards of the same prompt, those of the batch included (Black et al. 2023, 2305.13301, 5.1).

    Arguments:
        history: how many rewards of each prompt are remembered.
        least: with fewer of them than this, mean and deviation are those of the whole batch.
    """

    def __init__(self, history: int, least: int) -> None:
        self.history, self.least = history, least
        self.rewards: dict[str, list[float]] = {}

    def of(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """As in `Advantages`."""
        for prompt, reward in zip(prompts, rewards, strict=True):
            if math.isfinite(reward):
                self.rewards[prompt] = [*self.rewards.get(prompt, ()), reward][-self.history :]
        finite = [reward for reward in rewards if math.isfinite(reward)]
        known = {prompt: self.rewards.get(prompt, []) for prompt in prompts}
        compared = {prompt: seen if len(seen) >= self.least else finite for prompt, seen in known.items()}
        return [_standardised(reward, compared[prompt]) for prompt, reward in zip(prompts, rewards, strict=True)]

    def state_dict(self) -> Mapping[str, Any]:
        """The last rewards of every prompt."""
        return {"rewards": {prompt: list(rewards) for prompt, rewards in self.rewards.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict()`."""
        self.rewards = {prompt: [float(reward) for reward in rewards] for prompt, rewards in state["rewards"].items()}


class ByGroup:
    """Against the images of the same prompt in the same batch (Shao et al. 2024, arXiv 2402.03300, section 4.1)."""

    def of(self, prompts: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """As in `Advantages`.

        Raises:
            RecipeError: if no prompt has two images.
        """
        groups: dict[str, list[float]] = {prompt: [] for prompt in prompts}
        for prompt, reward in zip(prompts, rewards, strict=True):
            if math.isfinite(reward):
                groups[prompt].append(reward)
        if len(groups) == len(prompts):
            raise RecipeError(
                "no prompt of a pass has two images, which are compared with one another",
                where="train.images_per_prompt",
                next="set it to 2 or more",
            )
        return [_standardised(reward, groups[prompt]) for prompt, reward in zip(prompts, rewards, strict=True)]

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes nothing of `state`: there is none."""


def _standardised(reward: float, others: Sequence[float]) -> float:
    if not math.isfinite(reward) or len(others) < 2:
        return 0.0
    spread = pstdev(others)
    if spread <= ROUNDING * max(map(abs, others)):
        return 0.0
    return (reward - fmean(others)) / spread
