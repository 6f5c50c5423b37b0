"""Where the gradient may flow through one sampling run, as plain data: methods make plans, the sampler runs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from random import Random
from typing import Any, Protocol, runtime_checkable

from draft_core.errors import SamplerError
from draft_core.leaps import Leaps


@dataclass(frozen=True)
class StepPlan:
    """What autograd records of one sampling run; no tensor in it.

    Arguments:
        steps: number of sampler steps T, counted as calls of `scheduler.step`.
        grad_steps: the steps whose denoiser call autograd records, 0 the first step and T - 1 the last.
            The chain of the sampler's own updates is recorded from the first grad step on.
        detach_input: a recorded denoiser call sees detached latents, so that the gradient flows through the
            sampler's own updates only, and no Jacobians of the denoiser multiply (DRTune, Wu et al. 2024).
        stop_at: leave the chain at this step, with the posterior mean of x0 that its prediction gives; None
            runs all of it (ReFL, Xu et al. 2023).
        prefix: number of steps, fewer than T, of a chain without gradient that makes x0 in the place of the whole one.
            It is not decoded; the images are re-noisings of that x0 (`Renoising`). None takes the chain's own steps.
        keep_trajectory: every step is kept, detached, for `sampler.replay` (policy gradients, importance weights).
        weights: grad step -> factor on the gradient of its prediction, whose value stays; 1 where one is missing. The
            `divergence` of a rollout is not weighted.
        input_weights: grad step -> factor on the gradient that flows through its denoiser call into its latents, whose
            value stays. Where one is missing, 0 with `detach_input` and 1 without.
        leaps: large steps that the weights stand for; the learner of the DRaFT family counts images less for which
            they miss the chain. They need `keep_trajectory`.

    Raises:
        SamplerError: if a number is not a whole one, a step is outside 0..T-1, or the fields contradict each other.
    """

    steps: int
    grad_steps: frozenset[int]
    detach_input: bool = False
    stop_at: int | None = None
    prefix: int | None = None
    keep_trajectory: bool = False
    weights: Mapping[int, float] = field(default_factory=dict, hash=False)
    input_weights: Mapping[int, float] = field(default_factory=dict, hash=False)
    leaps: Leaps | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        check_whole("StepPlan.steps", self.steps)
        object.__setattr__(self, "grad_steps", _set_of_steps(self.grad_steps))
        for name in ("stop_at", "prefix"):
            if getattr(self, name) is not None:
                check_whole(f"StepPlan.{name}", getattr(self, name))
        if self.steps < 1:
            raise SamplerError(f"a plan needs at least one step, not {self.steps}", where="StepPlan.steps")
        self._check_steps("grad_steps", sorted(self.grad_steps))
        self._check_steps("stop_at", [] if self.stop_at is None else [self.stop_at])
        if self.stop_at is not None and any(step > self.stop_at for step in self.grad_steps):
            raise SamplerError(
                f"it leaves the chain at step {self.stop_at}, before the grad step {max(self.grad_steps)}",
                where="StepPlan.stop_at",
                next="record only steps that are reached",
            )
        for name in ("weights", "input_weights"):
            object.__setattr__(self, name, _weights(f"StepPlan.{name}", getattr(self, name), self.grad_steps))
        if self.leaps is not None:
            self._check_leaps(self.leaps)
        if self.prefix is not None:
            self._check_prefix(self.prefix)

    def _check_leaps(self, leaps: Leaps) -> None:
        if not self.keep_trajectory:
            problem, advice = "leaps are compared with the chain, which is not kept", "add keep_trajectory=True"
        elif self.stop_at is not None:
            problem, advice = "leaps lead to the end of a chain that is left early", "leave out stop_at or leaps"
        elif any(leap.end > self.steps for leap in leaps.leaps):
            problem, advice = f"a leap ends behind the chain of {self.steps} steps", f"let it end at {self.steps}"
        else:
            return
        raise SamplerError(problem, where="StepPlan.leaps", next=advice)

    def _check_prefix(self, prefix: int) -> None:
        if not 1 <= prefix < self.steps:
            problem, advice = f"a prefix of {prefix} steps is not shorter than a chain of {self.steps}", "use fewer"
        elif self.grad_steps != {self.steps - 1}:
            problem, advice = "a shortened prefix leads to the last step alone", "give it as the one grad step"
        elif self.keep_trajectory:
            problem = "a shortened prefix has no steps of the whole chain that could be kept"
            advice = "leave out prefix or keep_trajectory"
        elif self.weights or self.input_weights:
            problem, advice = "re-noised copies take the last step's whole gradient", "leave out prefix or the weights"
        else:
            return
        raise SamplerError(problem, where="StepPlan.prefix", next=advice)

    def _check_steps(self, field: str, steps: list[int]) -> None:
        if outside := [step for step in steps if not 0 <= step < self.steps]:
            raise SamplerError(
                f"{field} steps {outside} are outside 0..{self.steps - 1}",
                where=f"StepPlan.{field}",
                next="number steps from 0, the first, to T - 1, the last",
            )

    @property
    def last(self) -> int:
        """The number of the last step whose denoiser is called: T - 1, or `stop_at`."""
        return self.steps - 1 if self.stop_at is None else self.stop_at


@dataclass(frozen=True)
class Renoising:
    """What follows a sampling run: x0 re-noised to the level of the last step, and that step once more with gradient.

    DRaFT-LV (Clark et al. 2024, section 3.2) and its relatives.

    Arguments:
        copies: how often x0, detached, is re-noised and denoised.
        batched: all copies in one batch, faster on a GPU that a batch does not fill; else one after another, and
            memory does not grow with their number. Each copy is given the noise that the run drew before its chain;
            a call that draws it otherwise for a larger batch is refused.
        step_each: an optimiser step after the samples and after each copy, instead of one for all of them: one run
            serves 1 + copies steps (prefix reuse).
        max_drift: with `step_each`, no further copies are made once those of a pass differ from the samples by more
            than this, root mean square over pixels in [0, 1]; None sets no bound.

    Raises:
        SamplerError: if `copies` is negative or not a whole number, `max_drift` is not a number of 0 or more, or the
            fields contradict each other.
    """

    copies: int = 0
    batched: bool = False
    step_each: bool = False
    max_drift: float | None = None

    def __post_init__(self) -> None:
        check_whole("Renoising.copies", self.copies)
        if self.copies < 0:
            raise SamplerError(f"copies is {self.copies}", where="Renoising.copies", next="use 0 or more")
        if self.max_drift is not None:
            self._check_drift(self.max_drift)
        if self.step_each and self.batched:
            raise SamplerError(
                "re-noisings in one batch leave no room for a step after each",
                where="Renoising.batched",
                next="use either batched or step_each",
            )

    def check_follows(self, plan: StepPlan) -> None:
        """That these copies can follow a run of `plan`.

        Raises:
            SamplerError: if that leaves no last step to re-noise to, or no images.
        """
        if plan.stop_at is not None and self.copies:
            raise SamplerError(
                "a chain that is left early has no last step to re-noise to",
                where="StepPlan.stop_at",
                next="use either stop_at or re-noised copies",
            )
        if self.copies and (plan.weights or plan.leaps is not None):
            raise SamplerError(
                "re-noised copies take the last step's whole gradient, and have no chain to leap over",
                where="StepPlan.weights",
                next="use either weights and leaps or re-noised copies",
            )
        if plan.prefix is not None and (not self.copies or self.max_drift is not None):
            problem = "makes no samples to drift from" if self.copies else "gives no images without re-noised copies"
            raise SamplerError(
                f"a shortened prefix {problem}",
                where="StepPlan.prefix",
                next="use Renoising(copies=1), without max_drift",
            )

    def _check_drift(self, bound: float) -> None:
        is_number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if not is_number or not math.isfinite(bound) or bound < 0:
            problem, advice = f"max_drift is {bound!r}", "give a number of 0 or more, or None for no bound"
        elif not self.step_each:
            problem, advice = "max_drift bounds the steps after each copy, and there are none", "add step_each=True"
        else:
            return
        raise SamplerError(problem, where="Renoising.max_drift", next=advice)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuses a setting of a sampler that is none of the values that it can have; 1 is not True.

    Raises:
        SamplerError: naming the values.
    """
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise SamplerError(
            f"{name} is {value!r}", where=f"DifferentiableSampler.{name}", next=f"use one of {list(choices)}"
        )


def check_whole(where: str, number: Any, *, at_least: int | None = None) -> None:
    """Refuses what is not a whole number, or is below a bound.

    Raises:
        SamplerError: with that number; `where` says what it was given for.
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise SamplerError(f"{number!r} is not a whole number", where=where, next="give a whole number")
    if at_least is not None and number < at_least:
        raise SamplerError(f"{number} is less than {at_least}", where=where, next=f"give {at_least} or more")


def _set_of_steps(steps: Any) -> frozenset[int]:
    try:
        numbers = frozenset(steps)
    except TypeError:
        raise SamplerError(
            f"{steps!r} is no set of steps", where="StepPlan.grad_steps", next="give a set such as {9, 14, 19}"
        ) from None
    for number in numbers:
        check_whole("StepPlan.grad_steps", number)
    return numbers


def _weights(where: str, weights: Any, grad_steps: frozenset[int]) -> dict[int, float]:
    """As a dictionary of its own."""
    if not isinstance(weights, Mapping):
        raise SamplerError(f"it is a {type(weights).__name__}", where=where, next="give {step: factor}")
    for step, weight in weights.items():
        if step not in grad_steps:
            raise SamplerError(
                f"step {step!r} is weighted, and no grad step", where=where, next=f"weigh some of {sorted(grad_steps)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise SamplerError(f"the weight of step {step} is {weight!r}", where=where, next="give a finite number")
    return {step: float(weight) for step, weight in weights.items()}


class Method(Protocol):
    """A training method of the DRaFT family: where the gradient flows in each update, and what is re-noised."""

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The plan of one update over `steps` sampler steps; random choices come from `rng` alone."""
        ...

    def renoising(self) -> Renoising:
        """What follows each sampling run."""
        ...


Sizes = Callable[[], Sequence[float]]


@runtime_checkable
class Weighing(Protocol):
    """A method whose weights depend on how far each step of the chain goes."""

    def weighted(self, plan: StepPlan, sizes: Sizes) -> StepPlan:
        """A plan of `plan(steps, rng)` with its weights.

        Arguments:
            sizes: gives h_t of each step x_{t+1} = x_t + h_t v_t, T numbers, `DifferentiableSampler.step_sizes`; it
                raises a `SamplerError` for steps of another form.
        """
        ...


@dataclass(frozen=True)
class LastStep:
    """The method that is taken where none is named, DRaFT-LV: the last step, and copies of x0 re-noised to it.

    Arguments:
        copies: how many, n in the paper (Clark et al. 2024, algorithm 1).
    """

    copies: int = 2

    def plan(self, steps: int, rng: Random) -> StepPlan:
        """The last of `steps` steps recorded; draws nothing from `rng`."""
        return StepPlan(steps=steps, grad_steps=frozenset({steps - 1}))

    def renoising(self) -> Renoising:
        """The copies of each sample, one after another."""
        return Renoising(copies=self.copies)
