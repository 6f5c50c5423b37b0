"""What a run will cost: calls from the method, seconds and memory from one small update on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import diffusers
import torch
from packaging.version import Version

from draft_core.cost.peak_memory import stored_bytes
from draft_core.cost.probe import Probe, uncompiled
from draft_core.cost.work import Calls, Seconds, Work
from draft_core.cost.work_by_scores import ImportanceWork, PolicyGradientWork, PreferenceWork
from draft_core.cost.work_of_plans import PlannedWork
from draft_core.cost.work_of_targets import TargetWork
from draft_core.errors import DraftError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.policy_gradient import PolicyGradient
from draft_core.learners.preference import PreferenceLearner
from draft_core.learners.surrogate_learner import SurrogateLearner
from draft_core.learners.targets import TargetLearner
from draft_core.learners.weighted_regression import WeightedRegression
from draft_core.sampling import pipelines
from draft_core.sampling.pipeline_call import Checkpointing, Decode
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.sharding import blocks, held
from draft_core.training.trainer import Trainer

CHECKPOINTINGS: tuple[Checkpointing, ...] = (False, "selective", True, "blocks", "lean", "halves", "sliced")
LEANER_DECODES: tuple[Decode, ...] = ("selective", "blocks", "sliced")
FLOAT32 = 4  # bytes
ADAM_MOMENTS = 2  # AdamW keeps two numbers for each parameter


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


@uncompiled
def forecast(trainer: Trainer) -> Forecast:
    """What an update of `trainer` will cost; no weight is changed.

    Seconds are those of a batch of one, times the batch: an upper estimate on a GPU that one image does not fill.
    Memory is measured for the smallest batches and for one and two grad steps, and extended linearly.

    Raises:
        DraftError: on a device whose memory cannot be measured, or for a method whose calls are not known.
    """
    work = work_of(trainer)
    times = work.times()
    return Forecast(
        device=str(trainer.device),
        steps=trainer.steps,
        calls=work.calls(times.calls_a_step),
        seconds=work.seconds(times),
        memory=_memory(trainer, work),
    )


WORKS: Mapping[type, Callable[[Trainer, Any], Work]] = {
    DirectLearner: lambda trainer, learner: PlannedWork(trainer, learner.method),
    PolicyGradient: PolicyGradientWork,
    WeightedRegression: ImportanceWork,
    PreferenceLearner: PreferenceWork,
    TargetLearner: TargetWork,
}


def is_known(trainer: Trainer) -> bool:
    """Whether it is known before an update what the method asks of the networks."""
    return isinstance(trainer.learner, tuple(WORKS))


def work_of(trainer: Trainer) -> Work:
    """What an update of the trainer's method asks of the networks.

    Raises:
        DraftError: if that is not known before one has been made.
    """
    learner = trainer.learner
    for known, work in WORKS.items():
        if isinstance(learner, known):
            return work(trainer, learner)
    if isinstance(learner, SurrogateLearner):
        raise DraftError(
            "what its warm-up, its refreshing and its own fits take is not predicted",
            where=f"reward {next(iter(learner.surrogates))!r}: surrogate",
            next="train for two updates and see their seconds: the first one has the warm-up",
        )
    raise DraftError(
        f"what {type(learner).__name__} asks of the networks is not known before it runs",
        where="method",
        next="train for one update and see its seconds, or use a method that `draft methods` lists as draft-core's",
    )


def shared_out(found: Forecast, trainer: Trainer, processes: int) -> Forecast:
    """The forecast for one of so many processes, which hold the frozen denoisers in common (`train.sharding`).

    Arguments:
        found: of `trainer`, whose denoisers are whole.
    """
    weights = dict(found.memory.weights)
    for name, denoiser in pipelines.find_denoisers(trainer.sampler.pipe).items():
        of_blocks = [frozen_bytes(block) for block in blocks(denoiser)] or [0]
        outside = weights[name] - sum(of_blocks)
        weights[name] = held(sum(of_blocks), max(of_blocks), outside, processes)
    return replace(found, memory=replace(found.memory, weights=weights))


@uncompiled
def further_bytes(trainer: Trainer) -> int:
    """What an update allocates beside the weights and the LoRA, which are there already."""
    memory = _memory(trainer, work_of(trainer))
    return memory.gradient + memory.optimizer + memory.activations


@uncompiled
def most_bytes(trainer: Trainer) -> int:
    """No less than `further_bytes` without the rewards: the memory of one image and one grad step, for all.

    Activations grow at most in proportion to images and to grad steps.
    """
    numbers = sum(parameter.numel() for parameter in trainer.parameters)
    at_once = work_of(trainer).images_at_once()
    return at_once * Probe(trainer).peak(1, 1, is_scored=False) + (1 + ADAM_MOMENTS) * numbers * FLOAT32


@uncompiled
def savings(trainer: Trainer, now: Memory) -> dict[str, int]:
    """Changes of the recipe that lower the memory of `trainer` from `now` -> the total each would give, in bytes."""
    return {change: total for change, total in _options(trainer, work_of(trainer), now) if total < now.total}


def _memory(trainer: Trainer, work: Work) -> Memory:
    components = {name: frozen_bytes(network) for name, network in pipelines.networks(trainer.sampler.pipe).items()}
    if (decoder := trainer.sampler.decoder) is not None:
        components["decoder of training"] = frozen_bytes(decoder.vae)
    rewards = {"rewards": frozen_bytes(trainer.objective)} if frozen_bytes(trainer.objective) else {}
    numbers = sum(parameter.numel() for parameter in trainer.parameters)
    return Memory(
        weights={**components, **rewards},
        lora=sum(parameter.nbytes for parameter in trainer.parameters),
        gradient=numbers * FLOAT32,
        optimizer=ADAM_MOMENTS * numbers * FLOAT32,
        activations=work.activations(trainer.batch_size),
    )


def _options(trainer: Trainer, work: Work, now: Memory) -> Iterator[tuple[str, int]]:
    """Each change that may lower the total, with the total it gives."""
    sampler, others = trainer.sampler, now.total - now.activations
    denoisers = pipelines.find_denoisers(sampler.pipe).values()
    decoder = getattr(sampler.pipe, "vae", None) if sampler.decoder is None else sampler.decoder.vae
    checkpointings = [how for how in CHECKPOINTINGS if how != "blocks" or pipelines.has_blocks(*denoisers)]
    decodes = [how for how in LEANER_DECODES if how != "blocks" or pipelines.has_blocks(decoder)]
    with _unchanged(sampler):
        for how in [how for how in checkpointings if how != sampler.gradient_checkpointing]:
            sampler.gradient_checkpointing = how
            total = others + work.activations(trainer.batch_size)
            yield f"model.gradient_checkpointing: {str(how).lower()}", total
    with _unchanged(sampler):
        for decode in [how for how in decodes if how != sampler.decode]:
            sampler.decode = decode
            yield f"model.decode: {decode}", others + work.activations(trainer.batch_size)
    if trainer.batch_size > 1 and work.may_be_halved:
        half = -(-trainer.batch_size // 2)
        name = f"train.batch_size: {half}, train.gradient_accumulation_steps: {2 * trainer.batches.accumulation}"
        yield name, others + work.activations(half)
    if trainer.device.type == "cuda":
        yield "model.remember_prompts: true", now.total - leaving(now.weights)


def leaving(weights: Mapping[str, int]) -> int:
    """Bytes of the text encoders that leave a GPU when prompts are remembered."""
    return sum(weights[name] for name in leaving_encoders(weights))


def leaving_encoders(components: Iterable[str]) -> list[str]:
    """Those of a pipeline's components that leave a GPU when prompts are remembered: its text encoders.

    Before diffusers 0.40 the first of them stays: it takes the device of a pipeline's first component, by name, for
    that of its call.
    """
    staying = 0 if Version(diffusers.__version__) >= Version("0.40") else 1
    return sorted(name for name in components if "text_encoder" in name)[staying:]


@contextmanager
def _unchanged(sampler: DifferentiableSampler) -> Iterator[None]:
    """What the sampler keeps for the backward pass, and diffusers' own checkpoints, are as before afterwards."""
    before = sampler.gradient_checkpointing, sampler.decode
    components = [*sampler.pipe.components.values(), sampler.decoder and sampler.decoder.vae]
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
    return sum(stored_bytes(tensor) for tensor in (*frozen, *module.buffers()))
