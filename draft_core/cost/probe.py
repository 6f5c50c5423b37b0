"""Small updates that are timed and measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from random import Random
from typing import Any, TypeVar, cast

import torch

from draft_core.cost.peak_memory import MemoryMeter, peak_memory
from draft_core.learners.learner import Alone, Batch, Learner
from draft_core.learners.recorded_runs import apart, record
from draft_core.plan import StepPlan
from draft_core.rewards.objective import NOTHING, Objective, Scores
from draft_core.sampling import pipelines, seams
from draft_core.sampling.recomputing.slices import is_recorded
from draft_core.sampling.rollout import Rollout
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import RECOMPUTING
from draft_core.training.robust import worst_scores
from draft_core.training.trainer import Trainer

Measure = TypeVar("Measure", bound=Callable[..., Any])


def uncompiled(measure: Measure) -> Measure:
    """A measurement of a trainer, its first argument, in which compiled blocks compute as they are written.

    Compiling takes minutes, and what a compiled block keeps cannot be counted by tensors.
    """

    @wraps(measure)
    def measured(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        denoisers = pipelines.find_denoisers(trainer.sampler.pipe).values()
        modules = (module for denoiser in denoisers for module in denoiser.modules())
        compiled = any(module._compiled_call_impl is not None for module in modules)
        # torch.compiler imports for seconds
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return measure(trainer, *args, **kwargs)

    return cast(Measure, measured)


@dataclass(frozen=True)
class Times:
    """Seconds of single calls at a batch of one."""

    calls_a_step: float
    plain: float
    with_grad: float  # forward and backward
    decoding_and_rewards: float  # forward and backward
    encoding: float
    image_encoding: float = 0.0


class Probe:
    """Small updates, in which all denoiser calls are empty but the recorded ones and the first."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.sampler = trainer.sampler
        self.device = trainer.device
        self.objective = trainer.objective.for_measurement()
        self.denoisers = list(pipelines.find_denoisers(self.sampler.pipe).values())

    def peak(self, batch: int, recorded: int, *, is_scored: bool = True) -> int:
        """Bytes that an update of `batch` prompts and the last `recorded` grad steps allocates at most."""
        return peak_memory(partial(self.update, batch, recorded, is_scored=is_scored), self.device)

    def update(self, batch: int, recorded: int, *, is_scored: bool = True) -> None:
        """A rollout, its scores (or the mean of its images) and its backward pass; the gradient is thrown away."""
        with self._mostly_empty():
            scores = self._scores(batch, recorded, is_scored=is_scored)
        self._backward(scores)

    def timed_update(self) -> Times:
        """Where the time of an update of one image goes."""
        clock = _Clock(self.device)
        calls: list[Any] = []
        pipe = self.sampler.pipe
        with ExitStack() as stack:
            for encoder in pipelines.modules_named(pipe, "text_encoder").values():
                stack.enter_context(seams.replaced(encoder, "forward", clock.around("encoding")))
            stack.enter_context(self._mostly_empty(clock, calls))
            whole = clock.measure(lambda: self._scores(1, 1))
        scores, count, forwards = clock.result, len(calls), dict(clock.seconds)
        backward = clock.measure(lambda: self._backward(scores))  # may recompute, and the clock runs on
        recorded = self._recorded_alone(calls[count - 1], clock)
        asked = 1 if self.trainer.regularizers.asks_base_model else 0  # the base model, at the grad step
        steps = self.sampler.steps + asked
        return Times(
            calls_a_step=count / steps,
            plain=forwards.get("plain", forwards["with_grad"]),
            with_grad=recorded,
            decoding_and_rewards=max(
                0.0, whole + backward - recorded - forwards.get("plain", 0.0) - forwards.get("encoding", 0.0)
            ),
            encoding=forwards.get("encoding", 0.0),
        )

    def timed_scores(self) -> Times:
        """Where the time of an image goes that is drawn and scored without gradient, and of a denoiser call with it."""
        clock, calls = _Clock(self.device), list[Any]()
        encoders = pipelines.modules_named(self.sampler.pipe, "text_encoder").values()
        with ExitStack() as stack:
            for encoder in encoders:
                stack.enter_context(seams.replaced(encoder, "forward", clock.around("encoding")))
            stack.enter_context(self._mostly_empty(clock, calls))
            whole = clock.measure(lambda: self._recorded_and_scored(1, 1))
        plain, encoding = clock.seconds["plain"], clock.seconds.get("encoding", 0.0)
        return Times(
            calls_a_step=len(calls) / self.sampler.steps,
            plain=plain,
            with_grad=self._recorded_alone(calls[-1], clock),
            decoding_and_rewards=max(0.0, whole - plain - encoding),
            encoding=encoding,
        )

    def peak_of_scores(self, batch: int, *, keep_trajectory: bool = True) -> int:
        """Bytes that drawing and scoring `batch` images without gradient allocates at most.

        Arguments:
            keep_trajectory: whether their steps are kept.
        """

        def work() -> None:
            with self._mostly_empty():
                self._recorded_and_scored(batch, 1, keep_trajectory=keep_trajectory)

        return peak_memory(work, self.device)

    def kept_by_runs(self, batch: int, parts: int) -> int:
        """Bytes of `batch` images and of the steps that led to them, drawn in so many parts."""
        with MemoryMeter() as meter, self._mostly_empty():
            runs = self._recorded_and_scored(batch, parts)
        assert runs
        return int(meter.live)

    def peak_of(self, learner: Learner, batch: Batch) -> int:
        """Bytes that a batch and the first loss of a learner allocate at most."""

        def score(images: torch.Tensor, prompts: Sequence[str], **of_surrogates: Any) -> Scores:
            return _scored(self, images, prompts)

        def work() -> None:
            trainer = self.trainer
            with self._mostly_empty(), trainer.autocast():
                loss = next(iter(learner.losses(batch, self.sampler, score)))
            self._backward(-loss.value if loss.divergence is None else -loss.value - loss.divergence)

        return peak_memory(work, self.device)

    def _recorded_and_scored(self, batch: int, parts: int, *, keep_trajectory: bool = True) -> list[Rollout]:
        alone, _ = apart(self.sampler)
        with self.trainer.autocast(), torch.no_grad():
            runs = record(alone, self.batch(batch), parts, keep_trajectory=keep_trajectory)
            for run in runs:
                _scored(self, run.images, run.prompts)
        return runs

    def batch(self, size: int, repeats: int = 1) -> Batch:
        """`size` items of the training, for a single process; so many in a row have one prompt."""
        batches = self.trainer.batches
        return Batch(
            prompts=[_prompt(self.trainer, index // repeats) for index in range(size)],
            generators=[torch.Generator("cpu").manual_seed(place) for place in range(size * batches.images_per_prompt)],
            columns={},
            update=0,
            rng=Random(0),
            ranks=Alone(),
        )

    def timed_image(self, sampler: DifferentiableSampler, rewards: Objective) -> tuple[int, float]:
        """Denoiser calls of one image that is drawn without a gradient and scored, and its seconds.

        Arguments:
            sampler: of the trainer's pipeline.
        """
        clock, calls, rewards = _Clock(self.device), list[Any](), rewards.for_measurement()
        prompts, noise = [self.trainer.batches.prompts[0]], [torch.Generator("cpu").manual_seed(0)]
        plan = StepPlan(sampler.steps, frozenset())
        with torch.no_grad(), self.trainer.autocast(), self._mostly_empty(clock, calls):
            whole = clock.measure(lambda: rewards(sampler(prompts, plan=plan, generator=noise).images, prompts))
        return len(calls), whole + (len(calls) - 1) * clock.seconds["plain"]

    def _scores(self, batch: int, recorded: int, *, is_scored: bool = True) -> torch.Tensor:
        trainer, steps = self.trainer, self.sampler.steps
        plan = StepPlan(steps=steps, grad_steps=frozenset(range(steps - min(recorded, steps), steps)))
        prompts = [_prompt(trainer, index) for index in range(batch)]
        noise = [
            torch.Generator("cpu").manual_seed(place) for place in range(batch * trainer.batches.images_per_prompt)
        ]
        with trainer.autocast():
            rollout = self.sampler(prompts, plan=plan, generator=noise)
            if not is_scored:
                return rollout.images.float()
            return _scored(self, rollout.images, rollout.prompts).total

    def _backward(self, scores: torch.Tensor) -> None:
        (-scores.mean()).backward()  # type: ignore[no-untyped-call]
        for parameter in self.trainer.parameters:
            parameter.grad = None

    def _recorded_alone(self, call: tuple[Any, Any, Any], clock: _Clock) -> float:
        """Seconds of one denoiser call with gradient and of its way back."""
        forward, *arguments = call
        args, kwargs = seams.mapped(torch.Tensor.detach, arguments)
        with self.trainer.autocast():
            forth = clock.measure(lambda: forward(*args, **kwargs))
        output = seams.tensors_in(clock.result)[0]
        back = clock.measure(lambda: self._backward(output.float()))
        return back + (2 * forth if self.sampler.gradient_checkpointing in RECOMPUTING else forth)

    @contextmanager
    def _mostly_empty(self, clock: _Clock | None = None, calls: list[Any] | None = None) -> Iterator[None]:
        blanks: dict[Any, Any] = {}

        def on_denoise(denoiser: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
            if calls is not None:
                calls.append((forward, args, kwargs))
            run = clock.around("with_grad" if is_recorded() else "plain") if clock else _plainly
            if is_recorded():
                return run(forward, *args, **kwargs)
            key = (denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs)))
            if key not in blanks:
                blanks[key] = seams.blank(run(forward, *args, **kwargs))
            return blanks[key]

        with ExitStack() as stack:
            for denoiser in self.denoisers:
                stack.enter_context(seams.replaced(denoiser, "forward", partial(on_denoise, denoiser)))
            yield


def _scored(probe: Probe, images: torch.Tensor, prompts: Sequence[str]) -> Scores:
    """As a training scores images, its caps and ranks aside."""
    scores, gate = worst_scores(probe.objective, images, prompts, NOTHING)[0], probe.trainer.scoring.gate
    if gate is not None:
        with torch.no_grad():
            gate(images.detach(), prompts)
    return scores


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """How long this takes the second time."""
    work()
    return _Clock(device).measure(work)


def _plainly(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


class _Clock:
    """Wall time, with the device's work waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.result: Any = None

    def measure(self, work: Callable[[], Any]) -> float:
        """Seconds of `work()`, whose result is then in `result`."""
        start = self._now()
        self.result = work()
        return self._now() - start

    def around(self, name: str) -> Callable[..., Any]:
        """A seam's wrapper that adds the seconds of its calls up under `name`."""

        def timed(forward: Any, *args: Any, **kwargs: Any) -> Any:
            start = self._now()
            output = forward(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start
            return output

        return timed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _prompt(trainer: Trainer, number: int) -> str:
    """A prompt of the training; always the first where a call has a single one, for others may not share it."""
    batches = trainer.batches
    shares_no_call = bool(trainer.sampler.columns.names) and batches.batch_size == batches.repeats
    return batches.prompts[0 if shares_no_call else number % len(batches.prompts)]
