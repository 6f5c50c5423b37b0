"""What a run will cost: calls from the plan, seconds and memory from one small update on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from draft_core.cost.probe import RECOMPUTING, Probe, Times
from draft_core.errors import DraftError
from draft_core.learners.direct import DirectLearner, images_per_noise
from draft_core.plan import Method, Renoising, StepPlan
from draft_core.sampling import pipelines
from draft_core.sampling.pipeline_call import Checkpointing, Decode
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.trainer import Trainer

CHECKPOINTINGS: tuple[Checkpointing, ...] = (False, "selective", True, "blocks")
LEANER_DECODES: tuple[Decode, ...] = ("selective", "blocks", "sliced")
FLOAT32 = 4  # bytes
ADAM_MOMENTS = 2  # AdamW keeps two numbers for each parameter


@dataclass(frozen=True)
class Calls:
    """What one update asks of the networks.

    Arguments:
        plain: denoiser calls without gradient.
        with_grad: denoiser calls with gradient, forward and backward.
        recomputed: denoiser calls made once more in the backward pass.
        decoded: images through the decoder; with `decode` other than "whole" each goes through it twice.
        scored: images through the rewards.
    """

    plain: int
    with_grad: int
    recomputed: int
    decoded: int
    scored: int


@dataclass(frozen=True)
class Seconds:
    """Where the time of one update goes, in seconds."""

    plain: float
    with_grad: float
    decoding_and_rewards: float
    encoding: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.plain + self.with_grad + self.decoding_and_rewards + self.encoding


@dataclass(frozen=True)
class Memory:
    """What lies on the device when an update takes most, in bytes.

    Arguments:
        weights: component -> its frozen weights; rewards under "rewards".
        lora: the trained weights.
        gradient: of the LoRA.
        optimizer: AdamW's two moments.
        activations: what an update allocates beside: stored activations, latents, images.
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

    Seconds are those of a batch of one, times the batch: an upper estimate on a GPU that one image does not fill.
    Memory is measured for batches of one and two, and for one and two grad steps, and extended linearly.

    Raises:
        DraftError: on a device whose memory cannot be measured, or for a method that makes no plans.
    """
    plan = _first_plan(trainer)
    probe = Probe(trainer)
    probe.update(1, 1)  # the first one sets up caches
    times = probe.timed_update()
    calls = count_calls(trainer, plan, times.calls_a_step)
    return Forecast(
        device=str(trainer.device),
        steps=trainer.steps,
        calls=calls,
        seconds=_seconds(trainer, calls, times),
        memory=_memory(trainer, plan, probe),
    )


def further_bytes(trainer: Trainer) -> int:
    """What an update allocates beside the weights and the LoRA, which are there already."""
    memory = _memory(trainer, _first_plan(trainer), Probe(trainer))
    return memory.gradient + memory.optimizer + memory.activations


def most_bytes(trainer: Trainer) -> int:
    """No less than `further_bytes` without the rewards: the memory of one image and one grad step, for all.

    Activations grow at most in proportion to images and to grad steps.
    """
    plan, copies = _first_plan(trainer), _method(trainer).renoising()
    together = copies.copies if copies.batched else 1
    images = max(len(plan.grad_steps), together, 1) * trainer.batch_size
    numbers = sum(parameter.numel() for parameter in trainer.parameters)
    return images * Probe(trainer).peak(1, 1, is_scored=False) + (1 + ADAM_MOMENTS) * numbers * FLOAT32


def savings(trainer: Trainer, now: Memory) -> dict[str, int]:
    """Changes of the recipe that lower the memory of `trainer` from `now` -> the total each would give, in bytes."""
    plan = _first_plan(trainer)
    return {change: total for change, total in _options(trainer, plan, Probe(trainer), now) if total < now.total}


def count_calls(trainer: Trainer, plan: StepPlan, calls_a_step: float) -> Calls:
    """The calls of an update of `plan`, exact where each step calls the denoiser equally often."""
    batch = trainer.batch_size * trainer.batches.images_per_prompt
    renoising = _method(trainer).renoising()
    renoisings = min(1, renoising.copies) if renoising.batched else renoising.copies
    chain = len(plan.grad_steps) if plan.prefix is None else 0
    recorded = round(calls_a_step * (chain + renoisings))
    plain = round(calls_a_step * (plan.last + 1 - len(plan.grad_steps) if plan.prefix is None else plan.prefix))
    plain += recorded if trainer.regularizers["kl"] else 0  # the base model, at each recorded call
    images = trainer.batches.accumulation * batch * images_per_noise(plan, renoising)
    return Calls(
        plain=trainer.batches.accumulation * plain,
        with_grad=trainer.batches.accumulation * recorded,
        recomputed=trainer.batches.accumulation * recorded
        if trainer.sampler.gradient_checkpointing in RECOMPUTING
        else 0,
        decoded=images,
        scored=images,
    )


def _first_plan(trainer: Trainer) -> StepPlan:
    return _method(trainer).plan(trainer.sampler.steps, trainer.batches.choices(0))


def _method(trainer: Trainer) -> Method:
    if isinstance(trainer.learner, DirectLearner):
        return trainer.learner.method
    raise DraftError(
        f"what {type(trainer.learner).__name__} asks of the networks is not known before it runs",
        where="method",
        next="train for one update and see its seconds, or use a method whose gradient flows through the sampler",
    )


def _seconds(trainer: Trainer, calls: Calls, times: Times) -> Seconds:
    batch = trainer.batch_size * trainer.batches.images_per_prompt
    return Seconds(
        plain=calls.plain * times.plain * batch,
        with_grad=calls.with_grad * times.with_grad * batch,
        decoding_and_rewards=calls.decoded * times.decoding_and_rewards,
        encoding=trainer.batches.accumulation * trainer.batch_size * times.encoding,
    )


def _memory(trainer: Trainer, plan: StepPlan, probe: Probe) -> Memory:
    components = {name: frozen_bytes(network) for name, network in pipelines.networks(trainer.sampler.pipe).items()}
    rewards = {"rewards": frozen_bytes(trainer.objective)} if frozen_bytes(trainer.objective) else {}
    numbers = sum(parameter.numel() for parameter in trainer.parameters)
    return Memory(
        weights={**components, **rewards},
        lora=sum(parameter.nbytes for parameter in trainer.parameters),
        gradient=numbers * FLOAT32,
        optimizer=ADAM_MOMENTS * numbers * FLOAT32,
        activations=_activations(trainer.batch_size, plan, _method(trainer).renoising(), probe),
    )


def _activations(batch: int, plan: StepPlan, renoising: Renoising, probe: Probe) -> int:
    """Peak of an update without the LoRA's gradient, linear in the batch and in the grad steps."""
    recorded = len(plan.grad_steps)

    def at(batch: int, recorded: int) -> float:
        """Bilinear through the four smallest updates."""
        small = measured(1, recorded)
        return small + (batch - 1) * (measured(2, recorded) - small) if batch > 1 else small

    def measured(batch: int, recorded: int) -> float:
        first = peaks(batch, 1)
        return first + (recorded - 1) * (peaks(batch, 2) - first) if recorded > 1 else first

    known: dict[tuple[int, int], int] = {}

    def peaks(batch: int, recorded: int) -> int:
        if (batch, recorded) not in known:
            known[batch, recorded] = probe.peak(batch, recorded)
        return known[batch, recorded]

    renoised = at(batch * renoising.copies, 1) if renoising.batched and renoising.copies else 0.0
    return round(max(at(batch, max(recorded, 1)), renoised))


def _options(trainer: Trainer, plan: StepPlan, probe: Probe, now: Memory) -> Iterator[tuple[str, int]]:
    """Each change that may lower the total, with the total it gives."""
    sampler, others = trainer.sampler, now.total - now.activations
    denoisers, decoder = pipelines.find_denoisers(sampler.pipe).values(), getattr(sampler.pipe, "vae", None)
    checkpointings = [how for how in CHECKPOINTINGS if how != "blocks" or pipelines.has_blocks(*denoisers)]
    decodes = [how for how in LEANER_DECODES if how != "blocks" or pipelines.has_blocks(decoder)]
    with _unchanged(sampler):
        for how in [how for how in checkpointings if how != sampler.gradient_checkpointing]:
            sampler.gradient_checkpointing = how
            total = others + _activations(trainer.batch_size, plan, _method(trainer).renoising(), probe)
            yield f"model.gradient_checkpointing: {str(how).lower()}", total
    with _unchanged(sampler):
        for decode in [how for how in decodes if how != sampler.decode]:
            sampler.decode = decode
            yield (
                f"model.decode: {decode}",
                others + _activations(trainer.batch_size, plan, _method(trainer).renoising(), probe),
            )
    if trainer.batch_size > 1:
        half = -(-trainer.batch_size // 2)
        name = f"train.batch_size: {half}, train.gradient_accumulation_steps: {2 * trainer.batches.accumulation}"
        yield name, others + _activations(half, plan, _method(trainer).renoising(), probe)
    if trainer.device.type == "cuda":
        yield "model.remember_prompts: true", now.total - leaving(now.weights)


def leaving(weights: Mapping[str, int]) -> int:
    """Bytes of the text encoders that leave a GPU when prompts are remembered."""
    return sum(weights[name] for name in leaving_encoders(weights))


def leaving_encoders(components: Iterable[str]) -> list[str]:
    """Those of a pipeline's components that leave a GPU when prompts are remembered.

    The first text encoder stays: diffusers takes the device of a pipeline's first component, by name, for that of its
    call.
    """
    return sorted(name for name in components if "text_encoder" in name)[1:]


@contextmanager
def _unchanged(sampler: DifferentiableSampler) -> Iterator[None]:
    """What the sampler keeps for the backward pass, and diffusers' own checkpoints, are as before afterwards."""
    before = sampler.gradient_checkpointing, sampler.decode
    components = sampler.pipe.components.values()
    networks = [component for component in components if hasattr(component, "disable_gradient_checkpointing")]
    unchecked = [network for network in networks if not network.is_gradient_checkpointing]
    try:
        yield
    finally:
        sampler.gradient_checkpointing, sampler.decode = before
        for network in [network for network in unchecked if network.is_gradient_checkpointing]:
            network.disable_gradient_checkpointing()


def frozen_bytes(module: torch.nn.Module) -> int:
    """Bytes of its frozen weights and of its buffers."""
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    return sum(tensor.nbytes for tensor in (*frozen, *module.buffers()))
