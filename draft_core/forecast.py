"""What a run will cost before it runs: calls from the plan, seconds and memory from one small update on this machine.

The hall: one of the few rooms that know both wings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from draft_core import seams
from draft_core.memory import peak_memory
from draft_core.passes import Checkpointing, Decode, has_blocks
from draft_core.plan import StepPlan
from draft_core.sampler import DifferentiableSampler
from draft_core.trainer import Trainer

CHECKPOINTINGS: tuple[Checkpointing, ...] = (False, "selective", True, "blocks")
RECOMPUTING: tuple[Checkpointing, ...] = (True, "blocks")  # the whole denoiser, sooner or later
LEANER_DECODES: tuple[Decode, ...] = ("selective", "blocks", "sliced")
FLOAT32 = 4  # bytes
ADAM_MOMENTS = 2  # AdamW keeps two numbers for each parameter


@dataclass(frozen=True)
class Calls:
    """What one update asks of the networks.

    Arguments:
        plain: denoiser calls without gradient.
        graded: denoiser calls with gradient, forward and backward.
        recomputed: denoiser calls made once more in the backward pass.
        decoded: pictures through the decoder; with `decode` other than "whole" each goes through it twice.
        scored: pictures through the rewards.
    """

    plain: int
    graded: int
    recomputed: int
    decoded: int
    scored: int


@dataclass(frozen=True)
class Seconds:
    """Where the time of one update goes, in seconds."""

    plain: float
    graded: float
    decoding_and_rewards: float
    encoding: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.plain + self.graded + self.decoding_and_rewards + self.encoding


@dataclass(frozen=True)
class Memory:
    """What lies on the device when an update takes most, in bytes.

    Arguments:
        weights: component -> its frozen weights; rewards under "rewards".
        lora: the trained weights.
        gradient: of the LoRA.
        optimizer: AdamW's two moments.
        activations: what an update allocates beside: stored activations, latents, pictures.
    """

    weights: dict[str, int]
    lora: int
    gradient: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.weights.values()) + self.lora + self.gradient + self.optimizer + self.activations


@dataclass(frozen=True)
class Forecast:
    """The cost of one update.

    Arguments:
        device: what it was measured on.
        steps: updates of the run.
        calls, seconds, memory: of one update, drawn as the first one.
    """

    device: str
    steps: int
    calls: Calls
    seconds: Seconds
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the totals, ready for JSON."""
        data = asdict(self)
        data["seconds"]["total"] = self.seconds.total
        data["memory"]["total"] = self.memory.total
        return data


def forecast(trainer: Trainer) -> Forecast:
    """What an update of `trainer` will cost; no weight is changed.

    Seconds are those of a batch of one, times the batch: an upper estimate on a GPU that one picture does not fill.
    Memory is measured for batches of one and two, and for one and two graded steps, and extended linearly.

    Raises:
        DraftError: on a device whose memory cannot be measured.
    """
    plan = _first_plan(trainer)
    probe = _Probe(trainer)
    probe.update(1, 1)  # the first one sets up caches
    times = probe.timed_update()
    calls = count_calls(trainer, plan, times.calls_a_step)
    return Forecast(
        device=str(trainer.accelerator.device),
        steps=trainer.steps,
        calls=calls,
        seconds=_seconds(trainer, calls, times),
        memory=_memory(trainer, plan, probe),
    )


def savings(trainer: Trainer, now: Memory) -> dict[str, int]:
    """Changes of the recipe that lower the memory of `trainer` from `now` -> the total each would give, in bytes."""
    plan = _first_plan(trainer)
    return {change: total for change, total in _options(trainer, plan, _Probe(trainer), now) if total < now.total}


def count_calls(trainer: Trainer, plan: StepPlan, calls_a_step: float) -> Calls:
    """The calls of an update of `plan`, exact where each step calls the denoiser equally often."""
    batch = trainer.batch_size * trainer.images_per_prompt
    renoisings = min(1, plan.resamples) if plan.together else plan.resamples
    chain = len(plan.graded) if plan.prefix is None else 0
    graded = round(calls_a_step * (chain + renoisings))
    plain = round(calls_a_step * (plan.last + 1 - len(plan.graded) if plan.prefix is None else plan.prefix))
    plain += graded if trainer.kl else 0  # the base model, at each graded call
    pictures = trainer.accumulation * batch * plan.passes
    return Calls(
        plain=trainer.accumulation * plain,
        graded=trainer.accumulation * graded,
        recomputed=trainer.accumulation * graded if trainer.sampler.gradient_checkpointing in RECOMPUTING else 0,
        decoded=pictures,
        scored=pictures,
    )


@dataclass(frozen=True)
class _Times:
    """Seconds of single calls at a batch of one."""

    calls_a_step: float
    plain: float
    graded: float  # forward and backward
    decoding_and_rewards: float  # forward and backward
    encoding: float


class _Probe:
    """Small updates, in which all denoiser calls are empty but the graded ones and the first."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.sampler = trainer.sampler
        self.device = trainer.accelerator.device
        self.denoisers = list(seams.find_denoisers(self.sampler.pipe).values())

    def peak(self, batch: int, graded: int) -> int:
        """Bytes that an update of so many prompts and graded last steps allocates at most."""
        return peak_memory(partial(self.update, batch, graded), self.device)

    def update(self, batch: int, graded: int) -> None:
        """A rollout, its scores and its backward pass; the gradient is thrown away."""
        with self._mostly_empty():
            scores = self._scores(batch, graded)
        self._backward(scores)

    def timed_update(self) -> _Times:
        """Where the time of an update of one picture goes."""
        clock = _Clock(self.device)
        calls: list[Any] = []
        pipe = self.sampler.pipe
        with ExitStack() as stack:
            for encoder in seams.modules_named(pipe, "text_encoder").values():
                stack.enter_context(seams.replaced(encoder, "forward", clock.around("encoding")))
            stack.enter_context(self._mostly_empty(clock, calls))
            whole = clock.measure(lambda: self._scores(1, 1))
        scores, count, forwards = clock.result, len(calls), dict(clock.seconds)
        backward = clock.measure(lambda: self._backward(scores))  # may recompute, and the clock runs on
        graded = self._graded_alone(calls[count - 1], clock)
        steps = self.sampler.steps + (1 if self.trainer.kl else 0)  # the base model is asked at the graded step
        return _Times(
            calls_a_step=count / steps,
            plain=forwards.get("plain", forwards["graded"]),
            graded=graded,
            decoding_and_rewards=max(
                0.0, whole + backward - graded - forwards.get("plain", 0.0) - forwards.get("encoding", 0.0)
            ),
            encoding=forwards.get("encoding", 0.0),
        )

    def _scores(self, batch: int, graded: int) -> torch.Tensor:
        trainer, steps = self.trainer, self.sampler.steps
        plan = StepPlan(steps=steps, graded=frozenset(range(steps - min(graded, steps), steps)))
        prompts = [trainer.prompts[place % len(trainer.prompts)] for place in range(batch)]
        noise = [torch.Generator("cpu").manual_seed(place) for place in range(batch * trainer.images_per_prompt)]
        with trainer.accelerator.autocast():
            rollout = self.sampler(prompts, plan=plan, generator=noise)
            total: torch.Tensor = trainer.objective(rollout.images, rollout.prompts).total
        return total

    def _backward(self, scores: torch.Tensor) -> None:
        self.trainer.accelerator.backward(-scores.mean())
        for parameter in self.trainer.parameters:
            parameter.grad = None

    def _graded_alone(self, call: tuple[Any, Any, Any], clock: _Clock) -> float:
        """Seconds of one denoiser call with gradient and of its way back."""
        forward, *arguments = call
        args, kwargs = seams.mapped(torch.Tensor.detach, arguments)
        with self.trainer.accelerator.autocast():
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
            run = clock.around("graded" if torch.is_grad_enabled() else "plain") if clock else _plainly
            if torch.is_grad_enabled():
                return run(forward, *args, **kwargs)
            key = (denoiser, seams.shapes_of(seams.denoiser_input(args, kwargs)))
            if key not in blanks:
                blanks[key] = seams.blank(run(forward, *args, **kwargs))
            return blanks[key]

        with ExitStack() as stack:
            for denoiser in self.denoisers:
                stack.enter_context(seams.replaced(denoiser, "forward", partial(on_denoise, denoiser)))
            yield


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


def _first_plan(trainer: Trainer) -> StepPlan:
    return trainer.estimator.plan(trainer.sampler.steps, Random(f"plan {trainer.seed} 0"))


def _seconds(trainer: Trainer, calls: Calls, times: _Times) -> Seconds:
    batch = trainer.batch_size * trainer.images_per_prompt
    return Seconds(
        plain=calls.plain * times.plain * batch,
        graded=calls.graded * times.graded * batch,
        decoding_and_rewards=calls.decoded * times.decoding_and_rewards,
        encoding=trainer.accumulation * trainer.batch_size * times.encoding,
    )


def _memory(trainer: Trainer, plan: StepPlan, probe: _Probe) -> Memory:
    components = {
        name: _bytes(component)
        for name, component in trainer.sampler.pipe.components.items()
        if isinstance(component, torch.nn.Module)
    }
    rewards = {"rewards": _bytes(trainer.objective)} if _bytes(trainer.objective) else {}
    numbers = sum(parameter.numel() for parameter in trainer.parameters)
    return Memory(
        weights={**components, **rewards},
        lora=sum(parameter.nbytes for parameter in trainer.parameters),
        gradient=numbers * FLOAT32,
        optimizer=ADAM_MOMENTS * numbers * FLOAT32,
        activations=_activations(trainer.batch_size, plan, probe),
    )


def _activations(batch: int, plan: StepPlan, probe: _Probe) -> int:
    """Peak of an update without the LoRA's gradient, linear in the batch and in the graded steps."""
    graded = len(plan.graded)

    def at(batch: int, graded: int) -> float:
        """Bilinear through the four smallest updates."""
        small = measured(1, graded)
        return small + (batch - 1) * (measured(2, graded) - small) if batch > 1 else small

    def measured(batch: int, graded: int) -> float:
        one = peaks(batch, 1)
        return one + (graded - 1) * (peaks(batch, 2) - one) if graded > 1 else one

    known: dict[tuple[int, int], int] = {}

    def peaks(batch: int, graded: int) -> int:
        if (batch, graded) not in known:
            known[batch, graded] = probe.peak(batch, graded)
        return known[batch, graded]

    renoised = at(batch * plan.resamples, 1) if plan.together and plan.resamples else 0.0
    return round(max(at(batch, max(graded, 1)), renoised))


def _options(trainer: Trainer, plan: StepPlan, probe: _Probe, now: Memory) -> Iterator[tuple[str, int]]:
    """Each change that may lower the total, with the total it gives."""
    sampler, others = trainer.sampler, now.total - now.activations
    denoisers, decoder = seams.find_denoisers(sampler.pipe).values(), getattr(sampler.pipe, "vae", None)
    checkpointings = [how for how in CHECKPOINTINGS if how != "blocks" or has_blocks(*denoisers)]
    decodes = [how for how in LEANER_DECODES if how != "blocks" or has_blocks(decoder)]
    with _unchanged(sampler):
        for how in [how for how in checkpointings if how != sampler.gradient_checkpointing]:
            sampler.gradient_checkpointing = how
            total = others + _activations(trainer.batch_size, plan, probe)
            yield f"model.gradient_checkpointing: {str(how).lower()}", total
    with _unchanged(sampler):
        for decode in [how for how in decodes if how != sampler.decode]:
            sampler.decode = decode
            yield f"model.decode: {decode}", others + _activations(trainer.batch_size, plan, probe)
    if trainer.batch_size > 1:
        half = -(-trainer.batch_size // 2)
        name = f"train.batch_size: {half}, train.gradient_accumulation_steps: {2 * trainer.accumulation}"
        yield name, others + _activations(half, plan, probe)
    if trainer.accelerator.device.type == "cuda":
        yield "model.remember_prompts: true", now.total - leaving(now.weights)


def leaving(weights: Mapping[str, int]) -> int:
    """Bytes of the text encoders that leave a GPU when prompts are remembered.

    The first stays: diffusers takes the device of a pipeline's first component, by name, for that of its call.
    """
    encoders = sorted(name for name in weights if "text_encoder" in name)
    return sum(weights[name] for name in encoders[1:])


@contextmanager
def _unchanged(sampler: DifferentiableSampler) -> Iterator[None]:
    """What the sampler keeps for the backward pass, and diffusers' own checkpoints, are as before afterwards."""
    before = sampler.gradient_checkpointing, sampler.decode
    networks = [one for one in sampler.pipe.components.values() if hasattr(one, "disable_gradient_checkpointing")]
    unchecked = [network for network in networks if not network.is_gradient_checkpointing]
    try:
        yield
    finally:
        sampler.gradient_checkpointing, sampler.decode = before
        for network in [network for network in unchecked if network.is_gradient_checkpointing]:
            network.disable_gradient_checkpointing()


def _bytes(module: torch.nn.Module) -> int:
    """Bytes of its frozen weights and of its buffers."""
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    return sum(tensor.nbytes for tensor in (*frozen, *module.buffers()))
