"""Whole chains through the pipeline's call: one that a plan describes, a short one, and one without networks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, final

import torch

from draft_core.errors import SamplerError
from draft_core.plan import StepPlan
from draft_core.sampling import pipelines, seams
from draft_core.sampling.call_traits import CallTraits
from draft_core.sampling.noise_levels import check_told, posterior_mean
from draft_core.sampling.pipeline_call import Forward, PipelineCall, Settings
from draft_core.sampling.randomness import Generator, noted, state_of
from draft_core.sampling.rollout import Origin, StepOutput, StepRecord, StepStart, identity

PROBE_PROMPT = "a photograph"
See = Callable[[int, seams.StepCall], None]


def unseen(number: int, call: seams.StepCall) -> None:
    """A step that is looked at by nobody."""


@final
class PlannedRun:
    """The chain as a plan describes it, or as much of it as the plan runs; steers one `PipelineCall`."""

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        self.call = PipelineCall(sampler, prompts, generator)
        self.pipe = sampler.pipe
        self.plan = plan
        self.number = 0  # of the step under way
        self.noise_state = state_of(generator)
        self.made_by = identity(sampler)
        self.encoded: list[Any] = []  # what the encoders returned, call by call
        self.blanks: dict[Any, Any] = {}
        self.before: tuple[list[seams.State] | None, Any] = (
            None,
            None,
        )  # what is remembered, and the output before the step
        self.first: StepStart | None = None
        self.drawn: list[torch.Size] = []
        self.drawn_before = 0  # the first step
        self.starts: dict[int, StepStart] = {}
        self.trajectory: list[StepRecord] = []
        self.last_output: Any = None  # of scheduler.step

    def sample(self) -> torch.Tensor:
        """The images of the run, (N, 3, H, W) in [0, 1].

        Raises:
            SamplerError: if the call takes another number of steps, or its images carry no gradient where they should.
        """
        with noted() as self.drawn:
            images: torch.Tensor = self.call.run(self)
        if self.number != self.plan.steps:
            raise SamplerError(
                f"it took {self.number} scheduler steps where the plan has {self.plan.steps}",
                where=type(self.pipe).__name__,
                next=f"make the plan for {self.number} steps",
            )
        return images

    def origin(self) -> Origin | None:
        """For replays; None where the chain was left early."""
        if self.plan.stop_at is not None:
            return None
        return Origin(
            prompts=self.call.prompts,
            generator=self.call.generator,
            noise_state=self.noise_state,
            first=self.first,
            drawn=self.drawn[: self.drawn_before],
            latents=seams.first_of(self.last_output, "prev_sample").detach(),
            starts=self.starts,
            encoded=self.encoded,
            blanks=self.blanks,
            made_by=self.made_by,
        )

    def records(self) -> bool:
        """The chain of the sampler's own updates is recorded from the first grad step on."""
        return bool(self.plan.grad_steps) and self.number >= min(self.plan.grad_steps)

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """As the sampler gives them."""
        return arguments

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """No further ones."""
        return []

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own step; the posterior mean at `stop_at`, and from then on nothing."""
        if self._is_left():
            output = seams.with_first(self.last_output, "prev_sample", call.sample)
            self.number += 1
            return output
        if self.first is None:
            self.first, self.drawn_before = first_start(self.pipe, call), len(self.drawn)
        if self.number in self.plan.weights:
            weighted = seams.with_gradient(call.model_output, self.plan.weights[self.number])
            call = seams.with_prediction(call, weighted)
        keeps = self.plan.keep_trajectory
        if keeps or self.number == self.plan.steps - 1:
            start = StepStart(self.number, call.timestep, call.sample.detach(), *self.before)
            self.starts[self.number] = start
        taken = StepOutput(self.pipe.scheduler, self.number, call, self.call.sampler.noise) if keeps else None
        if self.number == self.plan.stop_at:
            check_told(self.pipe.scheduler, call.told)
            mean = posterior_mean(self.pipe.scheduler, call.model_output, call.timestep, call.sample)
            self.last_output = call.run()
            output = seams.with_first(self.last_output, "prev_sample", mean)
        else:
            output = self.last_output = self.call.stepped(call)
        if taken is not None:
            after = seams.first_of(output, "prev_sample").detach()
            self.trajectory.append(StepRecord(start, taken, call.model_output.detach(), after))
        self.number += 1
        if keeps or self.number == self.plan.steps - 1:
            self.before = after_step(output, self.pipe)
        return output

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """With gradient in the planned steps, without in others; zeros once the chain is left."""
        key = (network, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if self._is_left() and key in self.blanks:
            return self.blanks[key]
        if self.number in self.plan.grad_steps:
            factor = self.plan.input_weights.get(self.number, 0.0 if self.plan.detach_input else 1.0)
            if factor != 1:
                args, kwargs = seams.with_input_gradient(args, kwargs, factor)
            output = record(args, kwargs)
        else:
            with torch.no_grad():
                output = forward(*args, **kwargs)
        self.blanks[key] = seams.blank(output)
        return output

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returns, kept for replays."""
        self.encoded.append(encode())
        return self.encoded[-1]

    def _is_left(self) -> bool:
        return self.number > self.plan.last


@final
class ShortRun:
    """A chain without gradient and without decoding, on a schedule of fewer steps: a cheap x0 to re-noise."""

    def __init__(self, sampler: Settings, prompts: Sequence[str] | None, plan: StepPlan, generator: Generator) -> None:
        self.call = PipelineCall(sampler, prompts, generator)
        self.pipe = sampler.pipe
        self.plan = plan
        self.noise_state = state_of(generator)
        self.made_by = identity(sampler)
        self.encoded: list[Any] = []
        self.blanks: dict[Any, Any] = {}
        self.latents: torch.Tensor  # after the last step so far
        self.first: StepStart | None = None
        self.drawn: list[torch.Size] = []
        self.drawn_before = 0  # the first step

    def origin(self) -> Origin:
        """The last step of the whole schedule, as if it were that of this chain.

        Raises:
            SamplerError: if the scheduler builds its last step on earlier predictions, which there are none of.
        """
        with noted() as self.drawn:
            self.call.run(self)
        last = self.plan.steps - 1
        whole = DryRun(self.call.sampler, self.call.prompts, self.blanks, noted={last})
        whole.replay_encoders(self.encoded)
        whole.run()
        start = whole.starts[last]
        memory = [tensor for tensor in seams.remembered(start.state) if tensor.shape == self.latents.shape]
        if memory:
            raise SamplerError(
                f"the last step of {type(self.pipe.scheduler).__name__} builds on earlier ones, which a shortened "
                "prefix does not have",
                where=type(self.pipe).__name__,
                next="use a scheduler without memory (DDIM, Euler), or a method that runs the whole chain",
            )
        return Origin(
            prompts=self.call.prompts,
            generator=self.call.generator,
            noise_state=self.noise_state,
            first=self.first,
            drawn=self.drawn[: self.drawn_before],
            latents=self.latents,
            starts={last: start},
            encoded=self.encoded,
            blanks=self.blanks,
            made_by=self.made_by,
        )

    def records(self) -> bool:
        """Nothing."""
        return False

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Of fewer steps, and without the decoder."""
        return {**arguments, **pipelines.undecoded(self.pipe), "num_inference_steps": self.plan.prefix}

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """No further ones."""
        return []

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own step, with the sampler's noise."""
        if self.first is None:
            self.first, self.drawn_before = first_start(self.pipe, call), len(self.drawn)
        output = self.call.stepped(call)
        self.latents = seams.first_of(output, "prev_sample").detach()
        return output

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """The call as it is."""
        output = forward(*args, **kwargs)
        self.blanks[network, seams.shapes_of(seams.denoiser_input(args, kwargs))] = seams.blank(output)
        return output

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returns, kept for replays."""
        self.encoded.append(encode())
        return self.encoded[-1]


@final
class DryRun:
    """The steps alone: each network is called once for the shape of its output, and gives zeros from then on.

    Arguments:
        blanks: such outputs that are known already: network and shape of its input -> zeros that take no memory.
        noted: steps whose starts are noted, without decoding; none runs the whole call.
        real: every call of a network is made, for pipelines that read what is inside them.
        see: called with the number of each step and its call, before it is taken.
        generator: of what the call draws; if left out one of its own.
    """

    def __init__(
        self,
        sampler: Settings,
        prompts: Sequence[str] | None,
        blanks: dict[Any, Any],
        *,
        noted: Collection[int] = (),
        real: bool = False,
        see: See = unseen,
        generator: Generator = None,
    ) -> None:
        self.call = PipelineCall(sampler, prompts, generator or torch.Generator().manual_seed(0))
        self.pipe = sampler.pipe
        self.blanks = blanks
        self.noted = noted
        self.real = real
        self.see = see
        self.number = 0
        self.before: tuple[list[seams.State] | None, Any] = None, None
        self.first: StepStart | None = None
        self.starts: dict[int, StepStart] = {}
        self.latents: torch.Tensor  # after the last step so far
        self.encoded: list[Any] = []  # what the encoders returned, call by call
        self.known: Iterator[Any] | None = None

    def run(self) -> CallTraits:
        """What the call was seen to do, its steps counted."""
        self.call.run(self)
        self.call.traits.needs_networks = self.real
        return self.call.traits

    def replay_encoders(self, encoded: Sequence[Any]) -> None:
        """Gives these in the place of what the encoders would return, call by call."""
        self.known = iter(encoded)

    def records(self) -> bool:
        """Nothing."""
        return False

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Without the decoder where only the starts of steps are wanted."""
        return {**arguments, **pipelines.undecoded(self.pipe)} if self.noted else arguments

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """No further ones."""
        return []

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own step, counted."""
        if self.first is None:
            self.first = first_start(self.pipe, call)
        if self.number in self.noted:
            self.starts[self.number] = StepStart(self.number, call.timestep, call.sample.detach(), *self.before)
        self.see(self.number, call)
        output = call.run()
        self.number += 1
        if self.number in self.noted:
            self.before = after_step(output, self.pipe)
        self.latents = seams.first_of(output, "prev_sample").detach()
        return output

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """Zeros, in the shape that the network gives."""
        if self.real:
            return forward(*args, **kwargs)
        key = (network, seams.shapes_of(seams.denoiser_input(args, kwargs)))
        if key not in self.blanks:
            self.blanks[key] = seams.blank(forward(*args, **kwargs))
        return self.blanks[key]

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returns, or returned before."""
        self.encoded.append(encode() if self.known is None else next(self.known))
        return self.encoded[-1]


def watched(sampler: Settings, batch: int, see: See, *, real: bool) -> CallTraits:
    """What a run of `batch` prompts does, with its networks or without; each of its steps is seen."""
    wordless = "prompt" not in pipelines.call_inputs(sampler.pipe)
    embedded = sampler.call_kwargs.get("prompt_embeds") is not None
    prompt = sampler.columns.example or PROBE_PROMPT
    return DryRun(sampler, None if wordless or embedded else [prompt] * batch, {}, real=real, see=see).run()


def lengths(arguments: dict[str, Any]) -> list[int]:
    """How many items the call's lists and batches hold, each number once; 0 and 1 are left out."""
    values = [*arguments.values(), *(item for value in arguments.values() if isinstance(value, list) for item in value)]
    return sorted({pipelines.length(value) for value in values} - {0, 1})


def first_start(pipe: Any, call: seams.StepCall) -> StepStart:
    """Where the first step of a run starts, with what is remembered there."""
    memory = seams.memory_of(pipelines.remembering(pipe))
    return StepStart(0, call.timestep, call.sample.detach(), memory, None)


def after_step(output: Any, pipe: Any) -> tuple[list[seams.State], Any]:
    """What scheduler and guiders remember after a step, and the step's output, detached."""
    return seams.memory_of(pipelines.remembering(pipe)), seams.mapped(torch.Tensor.detach, output)
