"""Runs that are recorded without gradient, and single steps of them once more: what policy gradients start from.

Come here for the log-probabilities of a step, and for what a sampler must have to give them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from draft_core.errors import RecipeError, SamplerError
from draft_core.learners.learner import Batch
from draft_core.plan import StepPlan
from draft_core.sampling.randomness import from_seed
from draft_core.sampling.rollout import Rollout, StepOutput
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import images_per_prompt

BaseModel = Callable[[], AbstractContextManager[Any]]


def apart(sampler: DifferentiableSampler) -> tuple[DifferentiableSampler, BaseModel | None]:
    """The sampler without its base model, and that: a method that compares steps asks it itself, where it needs to."""
    alone = copy.copy(sampler)
    alone.base_model = None
    alone.traits = sampler.traits  # seen once, for this and later updates
    return alone, sampler.base_model


def require_noise(sampler: DifferentiableSampler) -> list[int]:
    """The steps that draw noise, in order.

    Raises:
        SamplerError: if there are none, or a step has no distribution of its own.
    """
    if noisy := sorted(sampler.noisy_steps):
        return noisy
    raise SamplerError(
        f"no step of {type(sampler.pipe.scheduler).__name__} draws noise, so that its samples have no probabilities",
        where="model.scheduler",
        next="set model.noise, such as 0.7, or let the scheduler draw: model.call.eta 1 for DDIM, or "
        "stochastic_sampling in the settings of a flow Euler one",
    )


def record(
    sampler: DifferentiableSampler, batch: Batch, parts: int = 1, *, keep_trajectory: bool = True
) -> list[Rollout]:
    """The images of a batch, drawn without gradient in equal parts, every step of each kept.

    Part p holds every `parts`-th prompt from number p on, so that several processes have the parts of one. Noise that a
    scheduler draws from torch's global source is repeated by a resumed run.

    Arguments:
        sampler: without its base model (`apart`).
        parts: calls of the pipeline, a divisor of the number of prompts.
        keep_trajectory: False keeps the finished latents alone.
    """
    plan = StepPlan(sampler.steps, frozenset(), keep_trajectory=keep_trajectory)
    rollouts = []
    for prompts, generators in _split(batch.prompts, batch.generators, parts):
        with torch.no_grad(), from_seed(generators[0].initial_seed()):
            rollouts.append(sampler(prompts, plan=plan, generator=generators))
    return rollouts


def _split(
    prompts: Sequence[str], generators: Sequence[torch.Generator], parts: int
) -> Iterator[tuple[list[str], list[torch.Generator]]]:
    copies = len(generators) // len(prompts)
    of_each = [generators[first : first + copies] for first in range(0, len(generators), copies)]
    for part in range(parts):
        yield list(prompts[part::parts]), [generator for some in of_each[part::parts] for generator in some]


def require_single_images(sampler: DifferentiableSampler) -> None:
    """For methods that remember images: that a call makes one of each prompt.

    Raises:
        RecipeError: if it makes several.
    """
    if images_per_prompt(sampler.call_kwargs) > 1:
        raise RecipeError(
            "the method remembers images one by one, and a call makes several of each prompt",
            where="model.call",
            next="set train.images_per_prompt instead",
        )


def again(sampler: DifferentiableSampler, rollout: Rollout, number: int) -> StepOutput:
    """A step of a recorded run as the present weights take it from the recorded latents, with gradient."""
    return step_from(sampler, rollout, number, rollout.trajectory[number].before)


def step_from(sampler: DifferentiableSampler, rollout: Rollout, number: int, latents: torch.Tensor) -> StepOutput:
    """A step of a run as the present weights take it from these latents; recorded if the caller records."""
    found: list[StepOutput] = []
    sampler.replay(rollout, {number: latents}, found.append)
    return found[0]


def log_probability_then(rollout: Rollout, number: int) -> torch.Tensor:
    """Mean over dimensions of the log-probability of a step's latents when they were drawn, (B,)."""
    step = rollout.trajectory[number]
    return step.output.gaussian().log_probability(step.after)
