"""Steps of a run once more, from latents that the caller gives: what re-noising and other methods are built on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch

from draft_core.errors import SamplerError
from draft_core.sampling import pipelines, seams
from draft_core.sampling.chain import undecoded
from draft_core.sampling.noise_levels import (
    Gaussian,
    check_told,
    gaussian_of,
    general_step,
    noise_level,
    posterior_mean,
    prediction_of,
)
from draft_core.sampling.pipeline_call import Forward, PipelineCall, Settings, length
from draft_core.sampling.randomness import repeated
from draft_core.sampling.rollout import Origin, StepStart


class StepOutput:
    """One replayed step: its prediction, and what the scheduler makes of it, with gradient if the caller records.

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

        Raises:
            SamplerError: if what the scheduler's denoiser predicts is not known.
        """
        check_told(self._scheduler, self._call.told)

        def target() -> torch.Tensor:
            alpha, sigma = noise_level(self._scheduler, self.timestep, self.latents)
            return prediction_of(self._scheduler, alpha, sigma, x0, (self.latents - alpha * x0) / sigma)

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


Visit = Callable[[StepOutput], None]


class _Over(BaseException):
    """Leaves the pipeline's call once all wanted steps are taken; no pipeline catches it."""


@final
class Replay:
    """The pipeline's call again with all steps but the given ones empty: networks give zeros, latents stay.

    The step before a given one returns the given latents, and puts the scheduler into the state that it had there in
    the run; the first step gets them with its initial latents. The call draws what it drew in the run.

    Arguments:
        origin: of the run.
        given: step number -> latents before it: of the whole batch, or of several such batches in one.
        visit: called at each of these steps, before the scheduler's own; it may backpropagate at once.
    """

    def __init__(self, sampler: Settings, origin: Origin, given: Mapping[int, torch.Tensor], visit: Visit) -> None:
        self.sampler = sampler
        self.pipe = sampler.pipe
        self.origin = origin
        self.given = dict(given)
        self.visit = visit
        self.last = max(self.given)
        self.decodes = False
        self.copies = len(self.given[self.last]) // len(origin.latents)
        self.encoded = iter(origin.encoded)
        self.number = 0
        self.stub: Any = None  # a step's output, whose latents are replaced
        self.call: PipelineCall

    def images(self) -> torch.Tensor:
        """The images that the last step leads to, (N, 3, H, W) in [0, 1]; it must be among the given ones."""
        self.decodes = True
        images: torch.Tensor = self._run()
        return images

    def steps(self) -> None:
        """The given steps, and nothing decoded."""
        try:
            self._run()
        except _Over:
            return

    def _run(self) -> Any:
        prompts = None if self.origin.prompts is None else list(self.origin.prompts) * self.copies
        origin = self.origin
        noise = repeated(origin.generator, origin.noise_state, len(origin.latents), self.copies, origin.drawn)
        with noise as generator:
            self.call = PipelineCall(self.sampler, prompts, generator)
            return self.call.run(self)

    def records(self) -> bool:
        """What belongs to a given step, and the decoding after the last."""
        return self.number in self.given

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """For a batch `copies` times as large; without the decoder where no images are wanted."""
        origin, first = self.origin, self.given.get(0)
        if self.copies > 1:
            embedded = self.sampler.call_kwargs.get("prompt_embeds")
            prompts = embedded if origin.prompts is None else origin.prompts
            lengths = {len(origin.latents)} | (set() if prompts is None else {len(prompts)})
            arguments = {
                name: value if name == "generator" else _repeated(name, value, self.copies, lengths)
                for name, value in arguments.items()
            }
        if first is not None and pipelines.is_modular(self.pipe):  # no method there to replace
            arguments["latents"] = first / getattr(self.pipe.scheduler, "init_noise_sigma", 1.0)
        return arguments if self.decodes else {**arguments, **undecoded(self.pipe)}

    def further_seams(self) -> list[tuple[Any, str, Any]]:
        """The initial latents, where the first step is given."""
        return [(self.pipe, "prepare_latents", self._prepare)] if 0 in self.given else []

    def step(self, call: seams.StepCall) -> Any:
        """The scheduler's own at given steps; at others the latents stay, or become those of the next."""
        number, sample = self.number, call.sample
        if number in self.given:
            if number == 0:
                self._check_start(sample)
            self.visit(StepOutput(self.pipe.scheduler, number, call, self.sampler.noise))
            if number == self.last:
                if not self.decodes:
                    raise _Over
                return self.call.stepped(call)
            sample = sample.detach()
        self.number += 1
        stub = None
        if self.number in self.given:
            start = self._start(self.number)
            assert start.state is not None
            memory = seams.repeated(start.state, self.origin.latents.shape, self.copies)
            seams.restore_memory(pipelines.remembering(self.pipe), memory)
            sample = self.given[self.number]
            stub = start.output
        if stub is None:
            stub = self._start(min(number for number in self.given if number >= self.number)).output
        stub = seams.repeated(stub, self.origin.latents.shape, self.copies)
        return seams.with_first(stub, "prev_sample", sample)

    def _start(self, number: int) -> StepStart:
        return self.origin.starts[number]

    def network(self, network: Any, record: Forward, forward: Forward, args: Any, kwargs: Any) -> Any:
        """With gradient at given steps; zeros at others."""
        if self.number in self.given:
            return record(args, kwargs)
        shapes = seams.shapes_of(seams.denoiser_input(args, kwargs))
        blanks = self.origin.blanks
        if (network, shapes) not in blanks:  # a larger batch than the run's
            enlarged = (
                _enlarged(blank, recorded, shapes, self.copies)
                for (known, recorded), blank in blanks.items()
                if known is network
            )
            blanks[network, shapes] = next(blank for blank in enlarged if blank is not None)
        return blanks[network, shapes]

    def encode(self, encode: Callable[[], Any]) -> Any:
        """What the encoder returned in the run; for a larger batch what it returns now."""
        return encode() if self.copies > 1 else next(self.encoded)

    def _check_start(self, latents: torch.Tensor) -> None:
        """The first step has none before it to hand the latents in by, and a call may not take them as they are."""
        given = self.given[0]
        same_shape = latents.shape == given.shape
        if not same_shape or not torch.allclose(latents.to(given.dtype), given, rtol=1e-2, atol=1e-3):
            raise SamplerError(
                "its first step cannot be started from given latents",
                where=type(self.pipe).__name__,
                next="replay later steps; for re-noising use two steps or more",
            )

    def _prepare(self, prepare_latents: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare_latents(*args, **kwargs)
        if isinstance(prepared, torch.Tensor):
            return self.given[0]
        return (self.given[0], *prepared[1:])  # packed latents come with their position ids


def unvisited(output: StepOutput) -> None:
    """A visit that does nothing."""


def _enlarged(blank: Any, recorded: tuple[torch.Size, ...], shapes: tuple[torch.Size, ...], copies: int) -> Any:
    """The blank output that belongs to an input of these shapes, from one that belongs to the recorded, or None.

    Each shape must be the recorded one, or that of `copies` batches; or the recorded ones come `copies` times.
    """
    if shapes == recorded * copies:
        return seams.listed(blank, copies)
    pairs = zip(shapes, recorded, strict=False)
    fits = all(
        shape == before or (len(before) and shape == (copies * before[0], *before[1:])) for shape, before in pairs
    )
    if not fits or len(shapes) != len(recorded):
        return None
    return seams.mapped(lambda zero: zero[:1].expand(len(zero) * copies, *zero.shape[1:]), blank)


def _repeated(name: str, value: Any, copies: int, lengths: set[int]) -> Any:
    """An argument of the call, repeated if it holds one item for each prompt or image; prompts are repeated already."""
    if isinstance(value, list) and len(value) not in lengths:  # an image for each of several networks, say
        return [_repeated(name, item, copies, lengths) if isinstance(item, torch.Tensor) else item for item in value]
    if name == "prompt" or length(value) not in lengths or isinstance(value[0], (int, float)):
        return value
    return value * copies if isinstance(value, list) else value.repeat(copies, *[1] * (value.ndim - 1))
