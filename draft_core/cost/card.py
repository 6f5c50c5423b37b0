"""What an update of a published model takes on a card that is not here: predicted without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from draft_core.adapters.lora import add_lora, trainable
from draft_core.cost.forecast import ADAM_MOMENTS, FLOAT32, Memory, frozen_bytes, leaving_encoders
from draft_core.cost.meta_device import (
    META,
    build_network,
    embeddings,
    like_a_gpu,
    pipeline,
    tiles_once,
    without_numbers,
)
from draft_core.cost.peak_memory import MemoryMeter
from draft_core.cost.published import MODELS, REWARD_ENCODERS, Model, Network
from draft_core.frames import FrameChoice
from draft_core.plan import StepPlan
from draft_core.rewards.objective import Objective
from draft_core.sampling.call_traits import CallTraits
from draft_core.sampling.decoders.tiles import tile_decode
from draft_core.sampling.pipeline_call import Checkpointing, Decode
from draft_core.sampling.pipelines import has_blocks
from draft_core.sampling.sampler import DifferentiableSampler

GIB = 2**30
USABLE = 0.93  # of a card's nominal memory; an A10 of 24 GB has 22.4 GiB for a program, an H100 of 80 GB 79
# Assumed, not measured: CUDA's context with the libraries' workspaces, and fragments between what is allocated.
CONTEXT = GIB
FRAGMENTS = 0.05  # of the activations


@dataclass(frozen=True)
class Update:
    """What decides how much memory an update takes.

    Arguments:
        model: whose networks are built.
        batch: images that are recorded together.
        grad_steps: of the sampler.
        call: size of what is made, such as height, width and num_frames.
        rewards: kind -> dtype of its weights; those on the card.
        metrics: the same of what scores evaluations alone, of which only the weights are there in an update.
        rank, targets: of the LoRA.
        dtype: of the frozen weights.
        checkpointing, decode, remember_prompts: as in a recipe's model.
        tiles: as `tiled_decode` there.
        frames: of videos, those that are decoded and scored; None for all.
        decoder: what training decodes by in the place of the model's own decoder; None for that.
        quantization: component -> "nf4" or "int8", for frozen weights of fewer bits.
    """

    model: Model
    batch: int = 1
    grad_steps: int = 1
    call: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    rank: int = 8
    targets: tuple[str, ...] | None = None
    dtype: str = "bfloat16"
    checkpointing: Checkpointing = False
    decode: Decode = "whole"
    tiles: bool | Mapping[str, int] = False
    remember_prompts: bool = False
    frames: FrameChoice | None = None
    decoder: Network | None = None
    quantization: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """What lies on the card.

    Arguments:
        memory: of an update of one batch.
        start: bytes that lie there when the run begins: the whole pipeline, its text encoders included, and the LoRA.
        uncounted: rewards whose size is not known here.
    """

    memory: Memory
    start: int
    uncounted: tuple[str, ...] = ()

    @property
    def allowance(self) -> int:
        """Bytes that no tensor shows; an assumption."""
        return round(CONTEXT + FRAGMENTS * self.memory.activations)

    @property
    def total(self) -> int:
        """Bytes that the card must have."""
        return max(self.memory.total + self.allowance, self.start + CONTEXT)

    def as_dict(self) -> dict[str, Any]:
        """Everything, with the totals, ready for JSON."""
        data = asdict(self)
        data["memory"]["total"] = self.memory.total
        return {**data, "allowance": self.allowance, "total": self.total}

    def times(self, batch: int) -> Prediction:
        """The same for `batch` as many images, whose activations are taken to be in proportion."""
        return replace(self, memory=replace(self.memory, activations=batch * self.memory.activations))


def published_model(name: str) -> Model | None:
    """The model that has this name on the hub, if its networks are known here."""
    return next((model for model in MODELS.values() if model.hub == name), None)


def usable(card: float) -> int:
    """Bytes that a program has of a card of so many GB."""
    return round(USABLE * card * GIB)


def predict(update: Update) -> Prediction:
    """The memory of an update, counted in every tensor that it allocates; no weight is loaded."""
    pipe = _with_lora(update)
    numbers = sum(parameter.numel() for parameter in trainable(pipe))
    dtype = getattr(torch, update.dtype)
    networks = {
        name: frozen_bytes(getattr(pipe, name, None) or build_network(network, dtype, update.quantization.get(name)))
        for name, network in update.model.networks.items()
    }
    if update.decoder is not None:
        networks["decoder of training"] = frozen_bytes(build_network(update.decoder, dtype))
    rewards, uncounted = _reward_bytes(update)
    weights = {**networks, **rewards}
    lora = numbers * FLOAT32
    memory = Memory(
        weights=_without_leaving(weights) if update.remember_prompts else weights,
        lora=lora,
        gradient=lora,
        optimizer=ADAM_MOMENTS * lora,
        activations=update.batch * _activations(pipe, update),
    )
    return Prediction(memory, sum(weights.values()) + lora, uncounted)


def leaner(model: Model) -> tuple[tuple[Checkpointing, Decode], ...]:
    """The settings of a recipe's `gradient_checkpointing` and `decode`, from the fastest to the leanest."""
    decoder = build_network(model.networks["vae"], torch.bfloat16)
    decodes: tuple[Decode, Decode] = ("selective", "blocks") if has_blocks(decoder) else ("sliced", "sliced")
    return (False, "whole"), ("selective", decodes[0]), ("blocks", decodes[1])


def _with_lora(update: Update) -> Any:
    pipe = pipeline(update.model, getattr(torch, update.dtype), update.quantization)
    with META:
        add_lora(pipe, rank=update.rank, targets=update.targets)
    return pipe


def _without_leaving(weights: Mapping[str, int]) -> dict[str, int]:
    """Without the text encoders that leave the card when prompts are remembered."""
    gone = leaving_encoders(weights)
    return {name: count for name, count in weights.items() if name not in gone}


def _reward_bytes(update: Update) -> tuple[dict[str, int], tuple[str, ...]]:
    scorers = {**update.metrics, **update.rewards}
    known = {
        f"reward {kind}": round(REWARD_ENCODERS[kind][1] * 1e6 * getattr(torch, dtype).itemsize)
        for kind, dtype in scorers.items()
        if kind in REWARD_ENCODERS
    }
    return known, tuple(kind for kind in scorers if kind not in REWARD_ENCODERS)


def _activations(pipe: Any, update: Update) -> int:
    """Bytes that an update of one image allocates beside what lies on the device for good."""
    for parameter in trainable(pipe):
        parameter.grad = torch.zeros_like(parameter)  # counted by itself
    steps = update.grad_steps
    if update.tiles:
        tile_decode(pipe, update.tiles)
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=steps,
        gradient_checkpointing=update.checkpointing,
        decode=update.decode,
        frames=update.frames,
        decoder=_tiny_decoder(update),
        **{**update.model.call, **update.call, **embeddings(update.model, 1, getattr(torch, update.dtype))},
    )
    sampler.traits = CallTraits(steps)  # counting the steps takes numbers
    if sampler.decoder is not None:
        sampler.decoder.assume(shift=0.0, scale=1.0)  # any: so does finding them
    encoders: dict[str, torch.nn.Module] = {
        kind: _ImageSide(build_network(REWARD_ENCODERS[kind][0], getattr(torch, dtype)))
        for kind, dtype in update.rewards.items()
        if kind in REWARD_ENCODERS
    }
    objective = Objective(encoders)
    plan = StepPlan(steps=steps, grad_steps=frozenset(range(steps)))
    tiles = tiles_once(pipe.vae, update.decode)
    with without_numbers(pipe), like_a_gpu(), tiles, MemoryMeter() as meter:
        rollout = sampler(plan=plan, generator=torch.Generator().manual_seed(0))
        score = objective(rollout.images, rollout.prompts).total if encoders else rollout.images
        (-score.mean()).backward()
    return int(meter.peak)


def _tiny_decoder(update: Update) -> Any:
    return None if update.decoder is None else build_network(update.decoder, getattr(torch, update.dtype))


class _ImageSide(torch.nn.Module):
    """The image side of a CLIP, which sees images at its own size; prompts are read once and remembered."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Something like a score for each image, (B,)."""
        side = self.encoder.config.image_size
        small = torch.nn.functional.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
        output: Tensor = self.encoder(small.to(self.encoder.dtype)).pooler_output
        return output.float().sum(1)
