"""Large steps that stand for several of a chain's own: which predictions they weigh, and by how much. No tensor in it.

On a chain whose steps add a multiple of the prediction, x_{t+1} = x_t + h_t v_t, as Euler's steps of a flow do, a leap
from step a to step b is x_b ~ x_a + sum over t of w_t v_t. Come here for the weights of FlowBP (arXiv 2606.11075).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from draft_core.errors import SamplerError

NOTHING = 1e-8  # in units of noise levels


@dataclass(frozen=True)
class Leap:
    """One large step.

    Arguments:
        start: the step before which it begins.
        end: the step before which it ends; T is the end of the chain.
        weights: step -> w_t, the factor of its prediction, of steps in start..end-1; 0 where one is missing.
    """

    start: int
    end: int
    weights: Mapping[int, float]


@dataclass(frozen=True)
class Leaps:
    """Leaps that stand for a chain, and how little an image counts for which they miss it.

    An image's score is multiplied by 1 / sum over the leaps of max(least, d), where d is the mean over dimensions of
    |x_end as the leap has it - x_end of the chain| (LeapAlign; FlowBP-Lagrange).

    Arguments:
        leaps: one after another.
        least: the bound from below of each distance, in units of the latents; tau in the publications.

    Raises:
        SamplerError: if `least` is not above 0, or a leap has no steps.
    """

    leaps: tuple[Leap, ...]
    least: float

    def __post_init__(self) -> None:
        if not self.least > 0:
            raise SamplerError(f"least is {self.least!r}", where="Leaps.least", next="give a number above 0")
        for leap in self.leaps:
            if not 0 <= leap.start < leap.end or any(not leap.start <= step < leap.end for step in leap.weights):
                raise SamplerError(
                    f"a leap from step {leap.start} to {leap.end} weighs the steps {sorted(leap.weights)}",
                    where="Leaps.leaps",
                    next="weigh steps from its start on, and before its end",
                )


def euler_leap(start: int, end: int, sizes: Sequence[float]) -> Leap:
    """One step of Euler's from `start` to `end`: w_start = h_start + ... + h_{end-1}."""
    return Leap(start, end, {start: sum(sizes[start:end])})


def lagrange_leap(start: int, end: int, sizes: Sequence[float], order: int) -> Leap:
    """The integral of the polynomial through up to `order` predictions, evenly spread over the steps of the leap.

    With s_t the noise level before step t, s_{t+1} - s_t = h_t, and supports t_1 < ... < t_n, t_1 = start:
    w_i = integral from s_start to s_end of prod over j != i of (s - s_j) / (s_i - s_j) ds.
    """
    levels = [0.0, *accumulate(sizes[start:end])]  # measured from the start: the weights do not depend on the origin
    chosen = supports(end - start, order)
    weights = integral_weights([levels[step] for step in chosen], levels[-1])
    return Leap(start, end, {start + step: weight for step, weight in zip(chosen, weights, strict=True)})


def supports(length: int, order: int) -> list[int]:
    """At most `order` of 0..length-1, 0 and the last among them, as evenly spread as whole numbers can be."""
    if length <= order:
        return list(range(length))
    if order == 1:
        return [0]
    return [round(number * (length - 1) / (order - 1)) for number in range(order)]


def integral_weights(nodes: Sequence[float], end: float) -> list[float]:
    """For each node the integral from 0 to `end` of the Lagrange polynomial that is 1 there and 0 at all others."""
    weights = []
    for node in nodes:
        polynomial = [1.0]  # coefficients, of the constant first
        for other in nodes:
            if other != node:
                times_s, constant = [0.0, *polynomial], [*polynomial, 0.0]
                polynomial = [(up - other * stay) / (node - other) for up, stay in zip(times_s, constant, strict=True)]
        weights.append(sum(part * end ** (power + 1) / (power + 1) for power, part in enumerate(polynomial)))
    return weights


def rescaling(share: float, weights: Iterable[float], active: Iterable[float]) -> float:
    """1 + share (sum |weights| / sum |active| - 1): what makes up for the steps that carry no gradient.

    Arguments:
        share: 0 makes up for nothing, 1 for all.
        weights: of all steps.
        active: of those with gradient; if they are next to nothing, nothing is made up for.
    """
    carried = sum(map(abs, active))
    return 1.0 + share * (sum(map(abs, weights)) / carried - 1.0) if carried > NOTHING else 1.0
