"""What a search is asked for, checked before anything is drawn."""

from __future__ import annotations

from draft_core.errors import DraftError
from draft_core.rewards.objective import Objective

MOST_SEED = 2**64 - 1  # what a generator of torch takes


def seeds_from(seed: int, count: int, *, where: str) -> tuple[int, ...]:
    """`count` seeds from `seed` on.

    Raises:
        DraftError: if one of them is outside 0..2^64 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED - count + 1:
        raise DraftError(f"{seed!r} is no seed", where=where, next="give a whole number from 0 on")
    return tuple(range(seed, seed + count))


def require_rewards(rewards: Objective, *, where: str) -> None:
    """Refuses an objective that says nothing of which image is better.

    Raises:
        DraftError: if it has no reward, or each has weight 0.
    """
    if not any(rewards.weights.values()):
        problem = "every reward has weight 0" if rewards.weights else "there is no reward"
        raise DraftError(problem, where=where, next="give one with a weight, to say which image is better")
