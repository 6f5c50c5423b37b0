"""FlowBP and LeapAlign: few steps of a flow carry the gradient, and stand for the others by their weights.

On a chain x_{t+1} = x_t + h_t v_t, v_t the prediction of step t, the gradient of x0 with the latents before each call
held fixed is sum over t of h_t dv_t. The methods choose a few t, and what is put in the place of h_t. Defaults are
those published for FLUX.1-dev, but for `flowbp-sparse`. See docs/decisions/0.1-surrogate-trajectories.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Annotated, Any, Literal

from pydantic import model_validator

from draft_core.errors import RecipeError
from draft_core.leaps import Leap, Leaps, euler_leap, lagrange_leap, rescaling, supports
from draft_core.plan import Sizes, StepPlan
from draft_core.registry.config import DirectConfig, Field
from draft_core.registry.specs import MethodSpec
from draft_core.setting import at_most

Concentration = Annotated[float, Field(gt=0)]


class FlowBPSparse(DirectConfig):
    """FlowBP-Sparse: x0 as a sum of Euler updates, of which a random few carry gradient (arXiv 2606.11075, 2026).

    `k` steps are drawn without replacement, step t, counted from 0, with probability in proportion to (t + 1)^bias.
    Their gradient is multiplied by 1 + rescale (sum |h_t| over all steps / sum |h_t| over theirs - 1). Published: k 3,
    bias 2, rescale 1 (FLUX.1-dev); k 4, bias 1, rescale .5 (SD 3.5 medium).
    """

    kind: Literal["flowbp-sparse"] = "flowbp-sparse"
    k: int = Field(5, ge=1, description="How many steps are recorded, drawn without replacement.")
    bias: float = Field(0.0, ge=0, le=20, description="How much likelier late steps are: (t + 1)^bias; 0 is uniform.")
    rescale: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much the gradient is raised for the steps that carry none: 0 not, 1 to the whole length of "
        "the chain. Above 0 the scheduler's steps must be Euler's.",
    )

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """`k` random steps recorded, with detached input.

        Raises:
            RecipeError: if `k` exceeds `steps`.
        """
        at_most("k", self.k, steps)
        return StepPlan(steps=steps, grad_steps=frozenset(_drawn(steps, self.k, self.bias, rng)), detach_input=True)

    def weighted(self, plan: StepPlan, sizes: Sizes) -> StepPlan:
        """`plan` with one weight for every grad step, by the lengths of the steps, `sizes()`.

        Raises:
            SamplerError: with `rescale`, if the scheduler's steps are of another form.
        """
        return _rescaled(plan, sizes, self.rescale)


class FlowBPBridge(DirectConfig):
    """FlowBP-Bridge: FlowBP-Sparse on both sides of a random step, whose input lets a share of the gradient through.

    The anchor j is the later of two steps drawn uniformly. Of `k` recorded steps the nearest whole number to k j / T
    lie before it, at least one; j itself is one of the others. On each side they are drawn like those of FlowBP-Sparse,
    counted from its beginning. The call at j sees alpha x_j + (1 - alpha) stopgrad(x_j), all others detached latents:
    so the gradient of what came before j also passes through one Jacobian (arXiv 2606.11075, 2026). Published: alpha
    .1, k 5, bias 2, rescale 1 (FLUX.1-dev); alpha .5, k 5, bias 4, rescale 0 (SD 3.5 medium).
    """

    kind: Literal["flowbp-bridge"] = "flowbp-bridge"
    k: int = Field(5, ge=2, description="How many steps are recorded, on both sides together.")
    bias: float = Field(2.0, ge=0, le=20, description="How much likelier late steps of a side are: (t + 1)^bias.")
    rescale: float = Field(
        1.0,
        ge=0,
        le=1,
        description="How much the gradient is raised for the steps that carry none, as in flowbp-sparse.",
    )
    alpha: float = Field(
        0.1, ge=0, le=1, description="Share of the gradient that passes through the call at the anchor."
    )

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """`k` steps recorded, the input of one of them with a share of the gradient.

        Raises:
            RecipeError: if `k` exceeds `steps`.
        """
        at_most("k", self.k, steps)
        anchor = max(rng.sample(range(steps), 2))
        behind = steps - anchor
        before = min(max(round(self.k * anchor / steps), 1), anchor, self.k - 1)
        before = max(before, self.k - behind)
        recorded = {*_drawn(anchor, before, self.bias, rng), anchor}
        recorded |= {anchor + 1 + step for step in _drawn(behind - 1, self.k - before - 1, self.bias, rng)}
        return StepPlan(
            steps=steps, grad_steps=frozenset(recorded), detach_input=True, input_weights={anchor: self.alpha}
        )

    def weighted(self, plan: StepPlan, sizes: Sizes) -> StepPlan:
        """`plan` with one weight for every grad step, by the lengths of the steps, `sizes()`.

        Raises:
            SamplerError: with `rescale`, if the scheduler's steps are of another form.
        """
        return _rescaled(plan, sizes, self.rescale)


class LeapAlign(DirectConfig):
    """LeapAlign: two Euler steps in the place of the chain, from random steps k and j > k (arXiv 2604.15311, 2026).

    x_j ~ x_k + (s_j - s_k) v_k and x0 ~ x_j + (s_T - s_j) v_j, s_t the noise level before step t; values are the
    chain's own. The call at j sees alpha x_j + (1 - alpha) stopgrad(x_j). The score of an image is multiplied by 1 /
    (max(tau, d_j) + max(tau, d_0)), d the mean absolute distance of a leap's end from the chain. Published: alpha .3,
    tau .1.
    """

    kind: Literal["leapalign"] = "leapalign"
    alpha: float = Field(0.3, ge=0, le=1, description="Share of the gradient that passes through the second call.")
    tau: float = Field(0.1, gt=0, description="Distances of a leap from the chain below it count as so much.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """Two random steps recorded, the input of the second with a share of the gradient.

        Raises:
            RecipeError: if there are fewer than two.
        """
        _at_least(2, steps)
        first, second = sorted(rng.sample(range(steps), 2))
        return _leaping(steps, {first, second}, second, self.alpha)

    def weighted(self, plan: StepPlan, sizes: Sizes) -> StepPlan:
        """`plan` with both steps weighted by how far they leap, by the lengths of the steps, `sizes()`.

        Raises:
            SamplerError: if the scheduler's steps are of another form.
        """
        lengths, (first, second) = sizes(), sorted(plan.grad_steps)
        leaps = (euler_leap(first, second, lengths), euler_leap(second, plan.steps, lengths))
        weights = {step: leap.weights[step] / lengths[step] for leap in leaps for step in leap.weights}
        return replace(plan, weights=weights, leaps=Leaps(leaps, self.tau))


class FlowBPLagrange(DirectConfig):
    """FlowBP-Lagrange: two leaps like LeapAlign's, each the integral of a polynomial through several predictions.

    A leap from a to b is x_b ~ x_a + sum of w_i v_i, where the supports i are up to `order` steps evenly spread over
    a..b-1, a among them, and w_i the integral of their Lagrange polynomial over the noise levels
    (`leaps.lagrange_leap`). The first `active` supports carry gradient: the start with its whole weight, the others
    with `support_scale` of it, from detached latents. In each leap it is multiplied by 1 + rescale (sum |w_i| / sum
    |w_i| over active ones - 1). The call at j, and the images' weights, are as in LeapAlign. T times a draw of a
    Dirichlet distribution with the concentrations `segments`, rounded to c + b + a = T of one or more each, gives k = c
    - 1 and j = c + b - 1 (arXiv 2606.11075, 2026). Published: order 3, active 2, support_scale .25, alpha .1, tau .2,
    segments [2, 6, 2.5], rescale .5 (FLUX.1-dev); for SD 3.5 medium rescale 0 and last 10.
    """

    kind: Literal["flowbp-lagrange"] = "flowbp-lagrange"
    order: int = Field(3, ge=1, le=8, description="Supports of a leap at most; 1 is Euler's step.")
    active: int = Field(2, ge=1, description="How many supports of a leap carry gradient, from its start on.")
    support_scale: float = Field(
        0.25, ge=0, description="Factor on the gradient of the supports that are not the start."
    )
    alpha: float = Field(
        0.1, ge=0, le=1, description="Share of the gradient that passes through the second leap's call."
    )
    tau: float = Field(0.2, gt=0, description="Distances of a leap from the chain below it count as so much.")
    rescale: float = Field(
        0.5, ge=0, le=1, description="How much the gradient is raised for the supports that carry none."
    )
    segments: tuple[Concentration, Concentration, Concentration] = Field(
        (2.0, 6.0, 2.5),
        description="Concentrations of the shares of the steps before the first leap, in it and in the second.",
    )
    last: int | None = Field(
        None, ge=2, description="The second leap starts at one of so many last steps; left out, anywhere."
    )

    @model_validator(mode="after")
    def _active_supports_are_among_all(self) -> Any:
        if self.active > self.order:
            raise ValueError(f"`active` is {self.active}, and a leap has {self.order} supports at most, by `order`")
        return self

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The active supports of two random leaps recorded; the second's start lets a share of the gradient through.

        Raises:
            RecipeError: if there are fewer than three, or `last` exceeds `steps`.
        """
        _at_least(3, steps)
        if self.last is not None:
            at_most("last", self.last, steps)
        first, second = self._starts(steps, rng)
        recorded = {
            start + support
            for start, end in ((first, second), (second, steps))
            for support in supports(end - start, self.order)[: self.active]
        }
        return _leaping(steps, recorded, second, self.alpha)

    def weighted(self, plan: StepPlan, sizes: Sizes) -> StepPlan:
        """`plan` with the active supports weighted by the quadrature, by the lengths of the steps, `sizes()`.

        Raises:
            SamplerError: if the scheduler's steps are of another form.
        """
        lengths, first, (second,) = sizes(), min(plan.grad_steps), plan.input_weights
        bounds = ((first, second), (second, plan.steps))
        leaps = tuple(lagrange_leap(start, end, lengths, self.order) for start, end in bounds)
        weights = {step: weight for leap in leaps for step, weight in self._weights(leap, plan, lengths).items()}
        return replace(plan, weights=weights, leaps=Leaps(leaps, self.tau))

    def _weights(self, leap: Leap, plan: StepPlan, lengths: Sequence[float]) -> dict[int, float]:
        active = {step: weight for step, weight in leap.weights.items() if step in plan.grad_steps}
        factor = rescaling(self.rescale, leap.weights.values(), active.values())
        scales = {step: 1.0 if step == leap.start else self.support_scale for step in active}
        return {step: factor * scales[step] * weight / lengths[step] for step, weight in active.items()}

    def _starts(self, steps: int, rng: Random) -> tuple[int, int]:
        """The first steps k and j of the leaps."""
        gammas = [rng.gammavariate(shape, 1.0) for shape in reversed(self.segments)]  # a, b, c
        shares = [gamma / sum(gammas) for gamma in gammas]
        lengths = [round(share * steps) for share in shares]
        lengths[shares.index(max(shares))] += steps - sum(lengths)
        lengths = [max(length, 1) for length in lengths]
        lengths[lengths.index(max(lengths))] += steps - sum(lengths)
        behind, between, _ = lengths
        if self.last is not None:
            behind = min(behind, self.last - 1)  # what is cut off comes before the first leap
        return steps - 1 - behind - between, steps - 1 - behind


FLOW = (
    MethodSpec(
        kind="flowbp-sparse", config=FlowBPSparse, summary="FlowBP-Sparse: a random few steps with detached input"
    ),
    MethodSpec(
        kind="flowbp-bridge",
        config=FlowBPBridge,
        summary="FlowBP-Bridge: the same, with one Jacobian let through in part",
    ),
    MethodSpec(
        kind="flowbp-lagrange",
        config=FlowBPLagrange,
        summary="FlowBP-Lagrange: two leaps, each a quadrature of few steps",
    ),
    MethodSpec(kind="leapalign", config=LeapAlign, summary="LeapAlign: two large Euler steps stand for the chain"),
)


def _leaping(steps: int, recorded: set[int], second: int, alpha: float) -> StepPlan:
    """Recorded steps of two leaps, of which the second's start lets a share of the gradient through its call."""
    return StepPlan(
        steps=steps,
        grad_steps=frozenset(recorded),
        detach_input=True,
        input_weights={second: alpha},
        keep_trajectory=True,
    )


def _drawn(steps: int, k: int, bias: float, rng: Random) -> list[int]:
    """`k` of 0..steps-1, one after another without replacement, each time in proportion to (t + 1)^bias.

    By the largest of log(u) / weight (Efraimidis and Spirakis 2006), which draws the same.
    """
    if not bias:
        return rng.sample(range(steps), k)
    keys = {step: math.log(1.0 - rng.random()) / (step + 1) ** bias for step in range(steps)}
    return sorted(keys, key=keys.__getitem__, reverse=True)[:k]


def _rescaled(plan: StepPlan, sizes: Sizes, rescale: float) -> StepPlan:
    if not rescale:
        return plan  # on any scheduler
    lengths = sizes()
    factor = rescaling(rescale, lengths, [lengths[step] for step in plan.grad_steps])
    return replace(plan, weights=dict.fromkeys(plan.grad_steps, factor))


def _at_least(fewest: int, steps: int) -> None:
    if steps < fewest:
        raise RecipeError(
            f"it needs {fewest} sampler steps or more, and there are {steps}",
            where="method.kind",
            next=f"raise model.num_inference_steps to {fewest} or more",
        )
