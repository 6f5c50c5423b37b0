"""What one sampling run made: images, and what later replays start from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from draft_core.display import MOST, gallery
from draft_core.errors import SamplerError
from draft_core.frames import still
from draft_core.rewards.images import to_pil
from draft_core.sampling import pipelines, seams
from draft_core.sampling.noise_levels import (
    Gaussian,
    check_told,
    gaussian_of,
    general_step,
    noise_level,
    posterior_mean,
    prediction_of,
)
from draft_core.sampling.pipeline_call import Settings

AnySampler = TypeVar("AnySampler", bound=Settings)


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


class StepOutput:
    """One step: its prediction, and what the scheduler makes of it, with gradient if the caller records.

    Arguments:
        scheduler: in its state before the step.
        number: of the step, 0 the first.
        call: of `scheduler.step`.
        noise: that the sampler adds, as its own `noise`.

    Attributes:
        number: of the step, 0 the first.
        timestep: as the pipeline gave it to the scheduler.
        latents: before the step, as they were given.
        prediction: of the denoiser, after guidance.
    """

    def __init__(self, scheduler: Any, number: int, call: seams.StepCall, noise: float = 0.0) -> None:
        self.number = number
        self.timestep = call.timestep
        self.latents = call.sample
        self.prediction = call.model_output
        self._scheduler = scheduler
        self._call = call
        self._noise = noise
        self._state = seams.scheduler_state(scheduler)

    def gaussian(self, eta: float | None = None) -> Gaussian:
        """The distribution of the latents after the step; each part shaped like the latents, mean with gradient.

        Arguments:
            eta: None takes the noise that the run drew: the scheduler's own, or the sampler's `noise`. A number from 0
                to 1 takes the general step between the same two noise levels (`noise_levels.gaussian_between`), for a
                scheduler that draws none: 0 is its own deterministic step, 1 the ancestral one (Song et al. 2021, arXiv
                2010.02502, equation 12).

        Raises:
            SamplerError: if the scheduler draws its noise where it cannot be replaced; with `eta`, if it draws noise of
                its own, its step builds on earlier predictions, or `eta` is outside 0..1.
        """
        if eta is None:
            gaussian: Gaussian = self._asked(lambda: gaussian_of(self._scheduler, self._call, self._noise))
            return gaussian
        check_told(self._scheduler, self._call.told)
        general: Gaussian = self._asked(lambda: general_step(self._scheduler, self._call, eta))
        return general

    def posterior_mean(self) -> torch.Tensor:
        """E[x0 | x_t], shaped like the latents.

        Raises:
            SamplerError: if it is not known for the scheduler's prediction type.
        """
        check_told(self._scheduler, self._call.told)
        mean: torch.Tensor = self._asked(
            lambda: posterior_mean(self._scheduler, self.prediction, self.timestep, self.latents)
        )
        return mean

    def prediction_for(self, x0: torch.Tensor) -> torch.Tensor:
        """What the denoiser would predict if the latents, alpha x0 + sigma eps, were made of this x0; shaped like them.

        The target of denoising score matching (Vincent 2011), in the units of the prediction: eps, x0, v or a flow.

        Arguments:
            x0: finished latents, shaped like `latents`.

        Raises:
            SamplerError: if what the scheduler's denoiser predicts is not known.
        """
        check_told(self._scheduler, self._call.told)

        def target() -> torch.Tensor:
            alpha, sigma = noise_level(self._scheduler, self.timestep, self.latents)
            wanted = prediction_of(self._scheduler, alpha, sigma, x0, (self.latents - alpha * x0) / sigma)
            return wanted.to(self.prediction.dtype)

        found: torch.Tensor = self._asked(target)
        return found

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The answer with the scheduler as it was before the step; afterwards it is as it is now."""
        now = seams.scheduler_state(self._scheduler)
        seams.restore_scheduler(self._scheduler, self._state)
        try:
            return question()
        finally:
            seams.restore_scheduler(self._scheduler, now)


@dataclass(frozen=True)
class StepRecord:
    """One step of a run as it was taken.

    Arguments:
        start: where it started.
        output: what the scheduler made of the prediction, as a replay gives it.
        prediction: of the denoiser, after guidance, detached.
        after: latents after it, detached.
    """

    start: StepStart
    output: StepOutput
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
        made_by: what the run was sampled with, `identity`.
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
    made_by: dict[str, Any] = field(default_factory=dict)

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
        squares: the mean squared difference of each row, with gradient, one tensor for each recorded call, (R,) of R
            rows, one or several batches of N; () where the denoiser gives a list; empty where the images are of
            several passes.
        latents: x0 of the samples, after the last step, detached, in the shape that the scheduler sees; None of
            re-noised images alone, and where the chain was left early.
        decoded: what the decoder made the images of, with gradient, (N, C, h, w), unpacked and in the decoder's units;
            None where `vae.decode` was not called just once.
        trajectory: the steps that were taken, in order, where the plan says `keep_trajectory`; else empty.
        origin: for `DifferentiableSampler.replay`; None of re-noised images alone.
    """

    images: torch.Tensor
    prompts: tuple[str, ...]
    sample_count: int
    divergence: torch.Tensor | None = None
    squares: tuple[torch.Tensor, ...] = ()
    latents: torch.Tensor | None = None
    decoded: torch.Tensor | None = None
    trajectory: tuple[StepRecord, ...] = ()
    origin: Origin | None = None

    @property
    def samples(self) -> torch.Tensor:
        """The samples alone, (sample_count, 3, H, W)."""
        return self.images[: self.sample_count]

    def __repr__(self) -> str:
        renoised, gradient = len(self.images) - self.sample_count, "with" if self.images.requires_grad else "without"
        counts = f"samples={self.sample_count}, renoised={renoised}"
        return f"Rollout({counts}, images={tuple(self.images.shape)}, {gradient} gradient)"

    def _repr_html_(self) -> str:
        prompts, copies = self.prompts[: self.sample_count], self.prompts[self.sample_count :]
        captions = [*prompts, *(f"{prompt} (re-noised)" for prompt in copies)]
        return gallery([*map(to_pil, still(self.images[:MOST]))], captions, of=len(captions))


def identity(sampler: Settings) -> dict[str, Any]:
    """What decides the predictions of a sampler's calls beside weights, prompts and noise: name -> value."""
    pipe = sampler.pipe
    parts = {
        name: getattr(pipe, name, None) for name in ("scheduler", "guider", "unet", "transformer", "transformer_2")
    }
    return {
        "pipe": pipe,
        **parts,
        "num_inference_steps": sampler.num_inference_steps,
        "noise": sampler.noise,
        "columns": sorted(map(": ".join, sampler.columns.names.items())),
        **sampler.call_kwargs,
    }


def starting_from(sampler: AnySampler, latents: Any) -> AnySampler:
    """A copy of a sampler whose calls start from these latents; the sampler itself where its calls do already.

    Raises:
        SamplerError: if they are no tensor, or the pipeline's call takes none.
    """
    if latents is sampler.call_kwargs.get("latents"):
        return sampler
    if not isinstance(latents, torch.Tensor):
        raise SamplerError(f"it is a {type(latents).__name__}", where="latents", next="give a tensor, or none")
    pipelines.check_keywords(sampler.pipe, {"latents": latents}, takes_steps=False)
    started = copy.copy(sampler)
    started.call_kwargs = {**sampler.call_kwargs, "latents": latents}
    return started


def check_same_sampler(origin: Origin, sampler: Settings) -> None:
    """That a run is replayed with what it was sampled with.

    Raises:
        SamplerError: naming what differs.
    """
    now, then = identity(sampler), origin.made_by
    for name in [*then, *(name for name in now if name not in then)]:
        if not _is_same(now.get(name), then.get(name)):
            raise SamplerError(
                f"it was sampled with another {name}",
                where="rollout",
                next="replay it with the sampler that made it, its pipeline and keywords unchanged",
            )


def _is_same(now: Any, then: Any) -> bool:
    plain = (str, int, float, bool, type(None))
    if isinstance(now, (list, tuple)) and type(now) is type(then):
        return len(now) == len(then) and all(map(_is_same, now, then))
    return now is then or (isinstance(now, plain) and isinstance(then, plain) and now == then)


def check_given(origin: Origin, given: Any, *, decode: bool) -> None:
    """That a replay is given latents that fit the run.

    Raises:
        SamplerError: naming the step that does not.
    """
    if not isinstance(given, Mapping) or not given:
        problem = "no step is given" if isinstance(given, Mapping) else f"it is a {type(given).__name__}"
        raise SamplerError(problem, where="given", next="give {step: latents}")
    if unknown := [number for number in given if number not in origin.starts]:
        raise SamplerError(
            f"the run did not keep step {unknown[0]!r}, only {sorted(origin.starts)}",
            where="given",
            next="sample with StepPlan(..., keep_trajectory=True)",
        )
    for number, latents in given.items():
        _check_latents(origin.latents, number, latents)
    if len({len(latents) for latents in given.values()}) > 1:
        raise SamplerError("the given latents are batches of different size", where="given", next="give equal ones")
    if decode and origin.last.number not in given:
        raise SamplerError(
            f"images need the last step, {origin.last.number}", where="decode", next="give its latents too"
        )


def _check_latents(of_run: torch.Tensor, number: int, latents: Any) -> None:
    if not isinstance(latents, torch.Tensor):
        raise SamplerError(f"step {number} is given a {type(latents).__name__}", where="given", next="give a tensor")
    shape, expected = tuple(latents.shape), tuple(of_run.shape)
    if shape[1:] != expected[1:] or not shape or not shape[0] or shape[0] % expected[0]:
        raise SamplerError(
            f"the latents of step {number} are {shape}, the run's {expected}",
            where="given",
            next="give latents of that shape, or several such batches in one",
        )
    if (latents.dtype, latents.device) != (of_run.dtype, of_run.device):
        raise SamplerError(
            f"the latents of step {number} are {latents.dtype} on {latents.device}, the run's {of_run.dtype} on "
            f"{of_run.device}",
            where="given",
            next="convert them with `latents.to(rollout.latents)`",
        )
