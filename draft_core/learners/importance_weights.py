"""Weights of samples that stand for another distribution: which are accepted, and how many they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

HALVINGS = 60  # of an interval of log-weights; it ends at the resolution of floating-point numbers


def effective_share(log_weights: Sequence[float]) -> float:
    """The effective sample size over the number of samples, (sum w)^2 / (n sum w^2), in [1/n, 1] (Kong 1992).

    Arguments:
        log_weights: n of them; minus infinity is a weight of zero, and at least one is larger.
    """
    weights = _relative(log_weights)
    return sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))


def acceptance(log_weights: Sequence[float], rate: float) -> list[float]:
    """The probability with which each sample is accepted, min(1, w/c), where c makes their mean the wanted rate.

    Relaxed rejection: exact where c is no less than the largest weight, and closer to the proposal the smaller c is
    (Denker et al. 2025, arXiv 2502.04468).

    Arguments:
        log_weights: as in `effective_share`.
        rate: in (0, 1]; samples of weight zero are never accepted, so that it may not be reached.
    """
    finite = [log_weight for log_weight in log_weights if log_weight > -math.inf]
    low, high = min(finite), max(finite) + math.log(len(log_weights) / rate)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if fmean(_accepted(log_weights, middle)) > rate:
            low = middle
        else:
            high = middle
    return _accepted(log_weights, high)


def normalised(log_weights: Sequence[float]) -> list[float]:
    """The weights, scaled to a mean of 1: a softmax times their number."""
    weights = _relative(log_weights)
    return [weight * len(weights) / sum(weights) for weight in weights]


def _relative(log_weights: Sequence[float]) -> list[float]:
    """The weights over the largest of them."""
    return _accepted(log_weights, max(log_weights))


def _accepted(log_weights: Sequence[float], threshold: float) -> list[float]:
    return [math.exp(min(0.0, log_weight - threshold)) for log_weight in log_weights]
