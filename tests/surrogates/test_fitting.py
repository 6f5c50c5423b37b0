"""What a surrogate is fitted by, against sums written out by hand, numpy and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from draft_core.surrogates.fitting import affine_fit, comparable, rank_correlation, ranking_loss, regression_loss

SCORES = torch.tensor([3.0, 1.0, 2.0, 2.0, -4.0], dtype=torch.float64)
GROUPS = ["a", "a", "b", "b", "a"]


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_the_ranking_loss_is_that_of_bradley_and_terry(groups: list[str] | None) -> None:
    numbers = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    losses = [
        -math.log(1 / (1 + math.exp(numbers[worse].item() - numbers[better].item())))
        for better in range(5)
        for worse in range(5)
        if SCORES[better] > SCORES[worse] and (groups is None or groups[better] == groups[worse])
    ]
    assert len(losses) == (9 if groups is None else 3)
    assert int(comparable(SCORES, groups).sum()) == len(losses)
    loss = ranking_loss(numbers, SCORES, groups)
    assert loss.item() == pytest.approx(np.mean(losses))
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, SCORES, groups), (numbers,))


def test_nothing_to_compare_is_no_loss() -> None:
    numbers = torch.tensor([1.0, 2.0], requires_grad=True)
    assert ranking_loss(numbers, torch.tensor([5.0, 5.0]), None).item() == 0.0
    assert ranking_loss(numbers, torch.tensor([5.0, 6.0]), ["a", "b"]).item() == 0.0


def test_the_regression_loss_is_the_mean_square() -> None:
    assert regression_loss(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(2.5)


def test_the_affine_map_is_the_least_squares_line() -> None:
    numbers = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])
    assert affine_fit(numbers, SCORES) == pytest.approx(tuple(np.polyfit(numbers.numpy(), SCORES.numpy(), 1)), rel=1e-5)
    assert affine_fit(torch.ones(5), SCORES) == (0.0, pytest.approx(float(SCORES.mean())))


def test_the_rank_correlation_is_spearmans() -> None:
    other = [0.3, -1.0, 2.0, 0.3, 0.1]
    assert rank_correlation(SCORES.tolist(), other) == pytest.approx(spearmanr(SCORES.numpy(), other).statistic)
    assert rank_correlation([1, 2, 3], [10, 20, 21]) == pytest.approx(1.0)
    assert math.isnan(rank_correlation([1, 2], [1, 2]))
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
