"""What one sampling run made: images, and what later replays start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class StepStart:
    """Where one step of a chain starts.

    Arguments:
        number: of the step, 0 the first.
        timestep: as the pipeline gave it to the scheduler.
        latents: before the step, detached, in the shape that the scheduler sees.
        state: what scheduler and guiders remember before it; None for the first step.
        output: of `scheduler.step` before it; some pipelines hand its further fields to the next. None for the first.
    """

    number: int
    timestep: Any
    latents: torch.Tensor
    state: list[dict[str, Any]] | None
    output: Any


@dataclass(frozen=True)
class StepRecord:
    """One step of a run as it was taken.

    Arguments:
        start: where it started.
        prediction: of the denoiser, after guidance, detached.
        after: latents after it, detached.
    """

    start: StepStart
    prediction: torch.Tensor
    after: torch.Tensor

    @property
    def number(self) -> int:
        """Of the step, 0 the first."""
        return self.start.number

    @property
    def timestep(self) -> Any:
        """As the pipeline gave it to the scheduler."""
        return self.start.timestep

    @property
    def before(self) -> torch.Tensor:
        """Latents before the step, detached."""
        return self.start.latents


@dataclass(frozen=True)
class Origin:
    """What a replay has to know of the run that it repeats a part of.

    Arguments:
        prompts: as the run was called.
        generator: the run's source of noise, where it stands now; re-noising goes on drawing from it.
        noise_state: what that source was at the start of the call, `randomness.state_of`.
        latents: after the last step, detached.
        starts: step number -> where it started; the last step at least.
        encoded: what the encoders returned, call by call.
        blanks: network and shapes of its input -> an output of zeros that takes no memory.
        first: where the first step started.
        drawn: shapes of the noise that the call drew before it.
    """

    prompts: Sequence[str] | None
    generator: Any
    noise_state: Any
    latents: torch.Tensor
    starts: dict[int, StepStart]
    encoded: list[Any] = field(default_factory=list)
    blanks: dict[Any, Any] = field(default_factory=dict)
    first: StepStart | None = None
    drawn: Sequence[torch.Size] = ()

    @property
    def last(self) -> StepStart:
        """The start of the last step."""
        return self.starts[max(self.starts)]


@dataclass(frozen=True)
class Rollout:
    """What one sampling run made, with gradient where the plan asked for it.

    Arguments:
        images: (N, 3, H, W) in [0, 1], (N, F, 3, H, W) for video. The first `sample_count` are the
            samples, as the plain pipeline call gives them; then the re-noised ones, one batch after another.
        prompts: the prompt of each image, N strings.
        sample_count: how many of the images are samples.
        divergence: mean squared difference between the predictions of the tuned and the base denoiser over the
            recorded calls, with gradient, (); None unless the sampler was given a base model.
        latents: x0 of the samples, after the last step, detached, in the shape that the scheduler sees; None of
            re-noised images alone, and where the chain was left early.
        trajectory: the steps that were taken, in order, where the plan says `keep_trajectory`; else empty.
        origin: for `DifferentiableSampler.replay`; None of re-noised images alone.
    """

    images: torch.Tensor
    prompts: tuple[str, ...]
    sample_count: int
    divergence: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    trajectory: tuple[StepRecord, ...] = ()
    origin: Origin | None = None

    @property
    def samples(self) -> torch.Tensor:
        """The samples alone, (sample_count, 3, H, W)."""
        return self.images[: self.sample_count]
