"""Methods: each published method as a small config that makes a step plan.

A new method is a new class of ten lines; the sampler knows no method's name. Another distribution registers
its own with the hook `draft_register_methods`.
"""

from __future__ import annotations

from random import Random
from typing import Literal

from draft_core.errors import RecipeError
from draft_core.plan import Renoising, StepPlan
from draft_core.registry.config import DirectConfig, Field
from draft_core.registry.flow import FLOW
from draft_core.registry.gradient_free import GRADIENT_FREE
from draft_core.registry.specs import MethodSpec
from draft_core.registry.targets import TARGET
from draft_core.setting import at_most


class Draft(DirectConfig):
    """DRaFT: the gradient flows through all T steps (Clark et al. 2024, arXiv 2309.17400, section 3.1)."""

    kind: Literal["draft"] = "draft"

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """All `steps` steps recorded; draws nothing from `rng`."""
        return StepPlan(steps=steps, grad_steps=frozenset(range(steps)))


class DraftK(DirectConfig):
    """DRaFT-K: the gradient stops at x_K, so only the last K steps count (Clark et al. 2024, section 3.2)."""

    kind: Literal["draft-k"] = "draft-k"
    k: int = Field(1, ge=1, description="How many of the last sampler steps the gradient flows through.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last `k` of `steps` steps recorded; draws nothing from `rng`.

        Raises:
            RecipeError: if `k` exceeds `steps`.
        """
        at_most("k", self.k, steps)
        return StepPlan(steps=steps, grad_steps=_last(self.k, steps))


class DraftLV(DirectConfig):
    """DRaFT-LV: DRaFT-1 with the variance lowered by re-noising x0 (Clark et al. 2024, section 3.2, algorithm 1).

    After a sample x0, `resamples` times: x_1 = alpha_1 * stopgrad(x0) + sigma_1 * eps with fresh eps, one
    denoising step, and the gradient of the reward of that image is added.
    """

    kind: Literal["draft-lv"] = "draft-lv"
    resamples: int = Field(2, ge=0, description="Fresh re-noisings of each sample, n in the paper; 0 is DRaFT-1.")
    batched: bool = Field(False, description="All re-noisings in one batch: faster on a large GPU, more memory.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last step recorded, x0 re-noised `resamples` times; draws nothing from `rng`."""
        return StepPlan(steps=steps, grad_steps=_last(1, steps))

    def renoising(self) -> Renoising:
        """`resamples` copies of each sample."""
        return Renoising(copies=self.resamples, batched=self.batched)


class PrefixReuse(DirectConfig):
    """DRaFT-LV's re-noisings with an optimiser step after each, so that one rollout serves many steps.

    The steps without gradient are nearly the whole cost of an update; here they are paid once for `updates`
    optimiser steps. The samples grow stale meanwhile: x0 is the one of the weights at the beginning. What bounds
    that is `updates` and, if given, `max_drift`. No publication; see docs/methods.md for what was measured.
    """

    kind: Literal["prefix-reuse"] = "prefix-reuse"
    updates: int = Field(8, ge=1, le=64, description="Optimiser steps from one rollout; 1 is DRaFT-1.")
    max_drift: float | None = Field(
        None,
        gt=0,
        description="Give a rollout up once the re-noised images differ from its samples by more than this, root mean "
        "square over pixels in [0, 1].",
    )

    @property
    def compares_images(self) -> bool:
        """The drift is that of a pass."""
        return self.max_drift is not None

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last step recorded, and `updates - 1` re-noisings, each with its own step; draws nothing from `rng`."""
        return StepPlan(steps=steps, grad_steps=_last(1, steps))

    def renoising(self) -> Renoising:
        """`updates - 1` copies, each with its own step."""
        return Renoising(copies=self.updates - 1, step_each=True, max_drift=self.max_drift)


class ShortPrefix(DirectConfig):
    """DRaFT-1 on a cheap x0: a few large sampler steps, re-noising to the last level, and the last step with gradient.

    DRaFT-LV's re-noised copies show that the last step learns as well from alpha_1 x0 + sigma_1 eps as from the chain's
    own x_1 (Clark et al. 2024, section 3.2); here x0 comes from a schedule of `prefix_steps` instead of T. The images
    that are judged on the way are those of all T steps. No publication; see docs/methods.md for what was measured.
    """

    kind: Literal["short-prefix"] = "short-prefix"
    prefix_steps: int = Field(4, ge=1, description="Sampler steps of the prefix, fewer than model.num_inference_steps.")
    updates: int = Field(1, ge=1, le=64, description="Optimiser steps from one prefix, each on a fresh re-noising.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last step recorded, from `updates` re-noisings of a short chain's x0; draws nothing from `rng`.

        Raises:
            RecipeError: if the prefix is not shorter than the chain.
        """
        at_most("prefix_steps", self.prefix_steps, steps, spare=1)
        return StepPlan(steps=steps, grad_steps=_last(1, steps), prefix=self.prefix_steps)

    def renoising(self) -> Renoising:
        """`updates` copies of the short chain's x0, with a step after each if there are several."""
        return Renoising(copies=self.updates, step_each=self.updates > 1)


class Refl(DirectConfig):
    """ReFL: at one random late step, the reward of the posterior mean of x0 (Xu et al. 2023, arXiv 2304.05977, alg. 1).

    The paper adds a pre-training loss on captioned images, which is not part of the method.
    """

    kind: Literal["refl"] = "refl"
    last: int = Field(10, ge=1, description="Number of last steps, m, from which the step is drawn; 1 is DRaFT-1.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """One of the last `last` steps, uniform, recorded and left with the posterior mean.

        Raises:
            RecipeError: if `last` exceeds `steps`.
        """
        at_most("last", self.last, steps)
        step = steps - rng.randint(1, self.last)
        return StepPlan(steps=steps, grad_steps=frozenset({step}), stop_at=step)


class AlignProp(DirectConfig):
    """AlignProp: DRaFT-K with K drawn anew for each update (Prabhudesai et al. 2023, arXiv 2310.03739, section 4)."""

    kind: Literal["alignprop"] = "alignprop"
    k_min: int = Field(1, ge=1, description="Smallest K.")
    k_max: int | None = Field(None, ge=1, description="Largest K; left out, all T steps.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last K steps recorded, K uniform over k_min..k_max.

        Raises:
            RecipeError: if the range is empty or exceeds `steps`.
        """
        k_max = steps if self.k_max is None else self.k_max
        at_most("k_max", k_max, steps)
        if self.k_min > k_max:
            raise RecipeError(f"k_min = {self.k_min} exceeds k_max = {k_max}", where="method.k_min", next="lower it")
        return StepPlan(steps=steps, grad_steps=_last(rng.randint(self.k_min, k_max), steps))


class DRTune(DirectConfig):
    """DRTune: evenly spread steps, each with its input detached, and an early stop (Wu et al. 2024, arXiv 2405.00760).

    The gradient reaches a step through the sampler's own updates alone. One of the last `last` steps is drawn
    to leave the chain at, with the posterior mean; `k` steps up to it, evenly spaced from a random offset, are
    recorded.
    """

    kind: Literal["drtune"] = "drtune"
    k: int = Field(5, ge=1, description="How many steps are recorded.")
    last: int = Field(10, ge=1, description="Number of last steps at one of which the chain is left; 1 runs all of it.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """`k` grad steps with detached input, and the step where the chain is left.

        Raises:
            RecipeError: if `last`, or `k` with the earliest stop, exceeds `steps`.
        """
        at_most("last", self.last, steps)
        reached = steps - rng.randint(0, self.last - 1)
        at_most("k", self.k, steps, spare=self.last - 1, spared="sampler steps up to the earliest stop")
        stride = reached // self.k
        offset = rng.randint(0, reached - 1 - (self.k - 1) * stride)
        recorded = frozenset(range(offset, offset + (self.k - 1) * stride + 1, stride))
        return StepPlan(steps=steps, grad_steps=recorded, detach_input=True, stop_at=reached - 1)


class StepList(DirectConfig):
    """The steps that are named, and no others: for experiments; `steps: [-3, -2, -1]` is DRaFT-3."""

    kind: Literal["steps"] = "steps"
    steps: tuple[int, ...] = Field((-1,), min_length=1, description="Recorded steps; -1 is the last one, 0 the first.")
    detach_input: bool = Field(False, description="Whether the recorded denoiser calls see detached latents.")

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The listed steps recorded; draws nothing from `rng`.

        Raises:
            RecipeError: if one of them is outside the chain.
        """
        for step in self.steps:
            if not -steps <= step < steps:
                raise RecipeError(
                    f"step {step} is outside a chain of {steps} steps",
                    where="method.steps",
                    next=f"use 0 to {steps - 1}, or -{steps} to -1 from the end",
                )
        recorded = frozenset(step % steps for step in self.steps)
        return StepPlan(steps=steps, grad_steps=recorded, detach_input=self.detach_input)


BUILT_IN = (
    MethodSpec(kind="draft", config=Draft, summary="DRaFT: gradient through all steps"),
    MethodSpec(kind="draft-k", config=DraftK, summary="DRaFT-K: gradient through the last K steps"),
    MethodSpec(kind="draft-lv", config=DraftLV, summary="DRaFT-LV: the last step, its variance lowered by re-noising"),
    MethodSpec(
        kind="prefix-reuse", config=PrefixReuse, summary="the last step, and several optimiser steps from one rollout"
    ),
    MethodSpec(
        kind="short-prefix", config=ShortPrefix, summary="the last step, from a cheap x0 sampled in a few large steps"
    ),
    MethodSpec(kind="refl", config=Refl, summary="ReFL: one random late step, judged by its posterior mean"),
    MethodSpec(kind="alignprop", config=AlignProp, summary="AlignProp: DRaFT-K with a random K for each update"),
    MethodSpec(kind="drtune", config=DRTune, summary="DRTune: spread steps with detached input, and an early stop"),
    *FLOW,
    MethodSpec(kind="steps", config=StepList, summary="the steps that are named, for experiments"),
    TARGET,
    *GRADIENT_FREE,
)


def _last(k: int, steps: int) -> frozenset[int]:
    return frozenset(range(steps - k, steps))
