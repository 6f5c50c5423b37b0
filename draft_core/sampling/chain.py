"""The whole chain of a plan through the pipeline's call, and the dry runs that count and prepare it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from draft_core.errors import SamplerError
from draft_core.plan import StepPlan
from draft_core.sampling import pipelines, seams
from draft_core.sampling.noise_levels import posterior_mean
from draft_core.sampling.pipeline_call import Generator, Pass, Settings, length

PROBE_PROMPT = "a photograph"


class Blank(Pass):
    """The steps alone: each network is called once for the shape of its output, and its output is zeros from then on.

    Arguments:
        blanks: such outputs that are known already: network and shape of its input -> zeros that take no memory.
    """

    def __init__(
        self, sampler: Settings, prompts: Sequence[str] | None, blanks: dict[Any, Any], generator: Generator = None
    ) -> None:
        super().__init__(sampler, prompts, generator or torch.Generator().manual_seed(0))
        self.blanks = blanks

    def on_step(self, call: seams.StepCall) -> Any:
        self.step += 1
        return call.run()

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        key = (denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if key not in self.blanks:
            self.blanks[key] = seams.blank(forward(*args, **kwargs))
        return self.blanks[key]

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.on_denoise(helper, forward, *args, **kwargs)


def count_steps(sampler: Settings, batch: int) -> int:
    """The `scheduler.step` calls of a run of so many prompts."""
    embedded = sampler.call_kwargs.get("prompt_embeds") is not None
    count = Blank(sampler, None if embedded else [PROBE_PROMPT] * batch, {})
    count.sample()
    return count.step


@dataclass(frozen=True)
class LastStep:
    """Where the last step of a chain starts: all that a re-noising has to know.

    Arguments:
        prompts, generator: as the chain was called.
        number: of the step, T - 1.
        x0: latents after it, detached.
        timestep: of it, as the pipeline gave it.
        state: of the scheduler before it; None where it is the first step too.
        output: of `scheduler.step` before it; some pipelines hand its further fields to the next.
        encoded: what the encoders returned, call by call.
        blanks: network and shape of its input -> an output of zeros that takes no memory.
    """

    prompts: Sequence[str] | None
    generator: Generator
    number: int
    x0: torch.Tensor
    timestep: Any
    state: dict[str, Any] | None
    output: Any
    encoded: list[Any]
    blanks: dict[Any, Any]


class Chain(Pass):
    """The whole chain, or as much of it as the plan runs, and what re-noisings need to know of it."""

    last_output: Any  # of scheduler.step
    last_step: LastStep  # once it has been taken

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        super().__init__(sampler, prompts, generator)
        self.plan = plan
        self.encoded: list[Any] = []  # what the encoders returned, call by call
        self.blanks: dict[Any, Any] = {}  # network and shape of its input -> an output of zeros that takes no memory
        self.before_last: tuple[Any, dict[str, Any] | None] = None, None  # output and state of the step before the last

    def sample(self) -> torch.Tensor:
        images = super().sample()
        if self.step != self.plan.steps:
            raise SamplerError(
                f"it took {self.step} scheduler steps where the plan has {self.plan.steps}",
                where=type(self.pipe).__name__,
                next=f"make the plan for {self.step} steps",
            )
        return images

    def records(self) -> bool:
        return bool(self.plan.grad_steps) and self.step >= min(self.plan.grad_steps)

    def left(self) -> bool:
        """Whether the chain was left at an earlier step."""
        return self.step > self.plan.last

    def on_step(self, call: seams.StepCall) -> Any:
        if self.left():
            output = seams.with_first(self.last_output, "prev_sample", call.sample)
        elif self.step == self.plan.stop_at:
            mean = posterior_mean(self.pipe.scheduler, call.model_output, call.timestep, call.sample)
            self.last_output = call.run()
            output = seams.with_first(self.last_output, "prev_sample", mean)
        else:
            output = self.last_output = call.run()
        self.step += 1
        if self.step == self.plan.steps - 1:
            self.before_last = _after(output, self.pipe.scheduler)
        if self.step == self.plan.steps:
            x0 = seams.first_of(output, "prev_sample").detach()
            before, state = self.before_last
            self.last_step = LastStep(
                *(self.prompts, self.generator, self.plan.steps - 1, x0, call.timestep),
                *(state, before, self.encoded, self.blanks),
            )
        self.set_recording()
        return output

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.network(denoiser, partial(self.denoise_with_gradient, denoiser, forward), forward, args, kwargs)

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.network(helper, lambda args, kwargs: forward(*args, **kwargs), forward, args, kwargs)

    def network(self, network: Any, recorded: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        key = (network, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if self.left() and key in self.blanks:
            return self.blanks[key]
        self.set_recording()  # a modular pipeline's call switches it off at its start
        if self.step in self.plan.grad_steps:
            if self.plan.detach_input:
                args, kwargs = seams.with_detached_input(args, kwargs)
            output = recorded(args, kwargs)
        else:
            with torch.no_grad():
                output = forward(*args, **kwargs)
        self.blanks[key] = seams.blank(output)
        return output

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.encoded.append(super().on_encode(forward, *args, **kwargs))
        return self.encoded[-1]

    def check_images(self, images: Any) -> None:
        super().check_images(images)
        denoisers = pipelines.find_denoisers(self.pipe).values()
        trains = any(parameter.requires_grad for denoiser in denoisers for parameter in denoiser.parameters())
        if self.caller_records and self.plan.grad_steps and trains and not images.requires_grad:
            raise SamplerError(
                "its images carry no gradient, something between the denoiser and them cuts it",
                where=type(self.pipe).__name__,
                next="look for a no_grad or a detach in its decode",
            )


class ShortChain(Pass):
    """A chain without gradient and without decoding, on a schedule of fewer steps: a cheap x0 to re-noise."""

    x0: torch.Tensor  # latents after the last step so far

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        super().__init__(sampler, prompts, generator)
        self.plan = plan
        self.encoded: list[Any] = []
        self.blanks: dict[Any, Any] = {}

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), **_undecoded(self.pipe), "num_inference_steps": self.plan.prefix}

    def on_step(self, call: seams.StepCall) -> Any:
        self.step += 1
        output = call.run()
        self.x0 = seams.first_of(output, "prev_sample").detach()
        return output

    def on_denoise(self, denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        self.blanks[denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs))] = seams.blank(output)
        return output

    def on_control(self, helper: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return self.on_denoise(helper, forward, *args, **kwargs)

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.encoded.append(super().on_encode(forward, *args, **kwargs))
        return self.encoded[-1]

    def last_step(self) -> LastStep:
        """The last step of the whole schedule, as if it were that of this chain.

        Raises:
            SamplerError: if the scheduler builds its last step on earlier predictions, which there are none of.
        """
        self.sample()
        schedule = Schedule(self)
        schedule.sample()
        before, state = schedule.before_last
        memory = [tensor for tensor in seams.tensors_in(state) if tensor.shape == self.x0.shape]
        if memory or schedule.two_streams:
            raise SamplerError(
                f"the last step of {type(self.pipe.scheduler).__name__} builds on earlier ones, which a shortened "
                "prefix does not have",
                where=type(self.pipe).__name__,
                next="use a scheduler without memory (DDIM, Euler), or a method that runs the whole chain",
            )
        return LastStep(
            *(self.prompts, self.generator, schedule.step - 1, self.x0, schedule.last_timestep),
            *(state, before, self.encoded, self.blanks),
        )


class Schedule(Blank):
    """The whole schedule without a network call: the scheduler as it is before its last step, for a short chain."""

    def __init__(self, chain: ShortChain) -> None:
        super().__init__(chain.sampler, chain.prompts, chain.blanks)
        self.steps = chain.plan.steps
        self.encoded = iter(chain.encoded)
        self.before_last: tuple[Any, dict[str, Any] | None] = None, None
        self.last_timestep: Any = None

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), **_undecoded(self.pipe)}

    def on_step(self, call: seams.StepCall) -> Any:
        output = super().on_step(call)
        if self.step == self.steps - 1:
            self.before_last = _after(output, self.pipe.scheduler)
        self.last_timestep = call.timestep
        return output

    def on_encode(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        return next(self.encoded)


def _after(output: Any, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    """The output of a step, detached, and the scheduler's state after it."""
    return seams.mapped(torch.Tensor.detach, output), seams.scheduler_state(scheduler)


def _undecoded(pipe: Any) -> dict[str, Any]:
    """The argument by which a call leaves the decoder out; a modular one has none."""
    return {} if pipelines.is_modular(pipe) else {"output_type": "latent"}


def lengths(arguments: dict[str, Any]) -> list[int]:
    """How many items the call's lists and batches hold, each number once; 0 and 1 are left out."""
    return sorted({length(value) for value in arguments.values()} - {0, 1})
