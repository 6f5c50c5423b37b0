"""What a surrogate is fitted by: losses of its numbers against scores, an affine map, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional


def comparable(scores: torch.Tensor, groups: Sequence[str] | None) -> torch.Tensor:
    """Which pairs of N images have a better one and are to be compared, (N, N), each pair once.

    Arguments:
        scores: (N,).
        groups: the prompt of each, if only images of one prompt are compared.
    """
    pairs = torch.ones(len(scores), len(scores), dtype=torch.bool, device=scores.device).triu(1)
    pairs &= scores[:, None] != scores[None, :]
    if groups is not None:
        number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        of = torch.tensor([number[group] for group in groups], device=scores.device)
        pairs &= of[:, None] == of[None, :]
    return pairs


def ranking_loss(numbers: torch.Tensor, scores: torch.Tensor, groups: Sequence[str] | None) -> torch.Tensor:
    """-log sigmoid(number of the better image - number of the worse), mean over pairs, () (Bradley and Terry 1952).

    Zero where there is no pair to compare.

    Arguments:
        numbers: of the network, (N,), with gradient.
        scores, groups: as in `comparable`.
    """
    pairs = comparable(scores, groups)
    ahead = (numbers[:, None] - numbers[None, :]) * (scores[:, None] - scores[None, :]).sign()
    return functional.softplus(-ahead)[pairs].sum() / pairs.sum().clamp(min=1)


def regression_loss(numbers: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Mean squared difference, ().

    Arguments:
        numbers: of the network, (N,), with gradient.
        scores: (N,), standardised.
    """
    return (numbers - scores).square().mean()


def affine_fit(numbers: torch.Tensor, scores: torch.Tensor) -> tuple[float, float]:
    """Slope and offset of the least-squares line from numbers (N,) to scores (N,); slope 0 where numbers are equal."""
    x, y = numbers.double(), scores.double()
    spread = float((x - x.mean()).square().sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def rank_correlation(these: Sequence[float], those: Sequence[float]) -> float:
    """Spearman's, in [-1, 1], equal values sharing their mean rank; NaN for fewer than 3 values, or where all of one
    side are equal.
    """
    if len(these) < 3:
        return math.nan
    x, y = (_ranks(torch.tensor(list(values), dtype=torch.float64)) for values in (these, those))
    x, y = x - x.mean(), y - y.mean()
    size = float(x.norm() * y.norm())
    return float(x @ y) / size if size > 0 else math.nan


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """From 0 on; equal values share their mean rank."""
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return (below + (equal - 1) / 2).double()
