"""Against exploitation, for any method: scores that count less where a reward is not to be trusted.

Come here for what `cap: {quantile: ...}` and `worst_within` of a reward's entry compute, and `regularizers.kl_gate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from draft_core.errors import RewardError
from draft_core.rewards.objective import Objective, Scores


def quantile(scores: Sequence[float], share: float) -> float:
    """The score that so large a share of `scores` does not exceed, between two of them by linear interpolation."""
    return float(torch.tensor(scores, dtype=torch.float64).quantile(share))


def ranked_too_high(trained: Sequence[float], others: Sequence[Sequence[float]]) -> list[bool]:
    """For each image, whether `trained` ranks it higher among them than the mean rank by `others`.

    A rank is the share of images that it beats, an equal one counting half: the win rate of He et al. 2025 (arXiv
    2512.24138, GARDO), who penalise the tenth of the images for which its excess is largest, where we take all with an
    excess.

    Arguments:
        trained: N scores.
        others: N scores of each of one or more.
    """

    def doubled(scores: Sequence[float]) -> torch.Tensor:  # whole numbers, so that equal ranks are equal
        of = torch.tensor(scores, dtype=torch.float64)
        return (of[:, None] > of).sum(1) * 2 + (of[:, None] == of).sum(1)

    ranks = torch.stack([doubled(scores) for scores in others])
    excess: list[bool] = (doubled(trained) * len(others) > ranks.sum(0)).tolist()
    return excess


def worst_scores(
    objective: Objective, images: torch.Tensor, prompts: Sequence[str], known: Mapping[str, torch.Tensor]
) -> tuple[Scores, dict[str, torch.Tensor]]:
    """What the objective gives, each reward with a radius at its worst within that of the images; and plain scores.

    The worst is looked for by one step against the gradient: r(x - rho g / rms(g)), g = dr/dx of the image, rms the
    root mean square over its values, which are kept in [0, 1]. The gradient of the score there is taken for that at x,
    so that the step itself has none (after RSA-FT, whose ball is our reading: it is one of images here).

    Arguments:
        images: (N, 3, H, W) in [0, 1], or videos, (N, F, 3, H, W).
        prompts: N.
        known: reward name -> scores, (N,), that are taken as they are.

    Returns:
        The scores, and for each reward with a radius its plain scores, (N,), detached.

    Raises:
        RewardError: as the objective, or if a reward with a radius gives the images no gradient.
    """
    plain, worst = dict[str, torch.Tensor](), dict(known)
    for name, radius in objective.radii.items():
        if name not in known:
            plain[name], shift = _shift(objective, name, images, prompts, radius)
            worst[name] = objective.scores_of(name, images + shift.to(images), prompts)
    scores: Scores = objective(images, prompts, worst)
    return scores, plain


def worst_shift(images: torch.Tensor, gradient: torch.Tensor, radius: float) -> torch.Tensor:
    """From images to the worst within `radius` by one step against the gradient; zero where that is zero."""
    size = gradient.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (gradient.ndim - 1))
    step = torch.where(size > 0, gradient / size, 0.0)
    return (images - radius * step).clamp(0, 1) - images


def _shift(
    objective: Objective, name: str, images: torch.Tensor, prompts: Sequence[str], radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        at = images.detach().float().requires_grad_()
        scores = objective.scores_of(name, at, prompts)
        if not scores.requires_grad:
            raise RewardError(
                "it gives the images no gradient, by which to find its worst near them",
                where=f"reward {name!r}",
                next="leave out worst_within, or use a reward with a gradient",
            )
        (gradient,) = torch.autograd.grad(scores.sum(), at)
    return scores.detach(), worst_shift(at.detach(), gradient, radius)
