"""What an update of a full-size model takes on a GPU, predicted without the GPU and without the weights.

    python benchmarks/scale.py            # writes its tables into docs/measurements/scale.md; half an hour
    python benchmarks/scale.py --only FLUX.1-dev --print-only

Each pipeline is built from its published config on torch's meta device (`draft_core.cost.meta_device`) and makes one
update there: the library's own sampler drives the pipeline's own call, a reward's own image encoder scores it, and
autograd goes back. `draft_core.cost.peak_memory` counts every tensor that this would allocate. What is added to that is
arithmetic: frozen weights, the LoRA with its gradient and AdamW's moments, and an allowance for what no tensor shows.

Attention is the one place where the meta device would mislead: there it falls apart into a product with an S x S matrix
that no GPU kernel stores. `like_a_gpu` puts in what flash and memory-efficient kernels keep: query, key, value,
output and one number for each row. Where a GPU has no such kernel for a head (the decoder's has 512 channels), it
takes more than is said here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import torch
from draft_reward_hpsv2 import Hpsv2Config
from draft_reward_hpsv2.reward import Hpsv2Reward
from tables import markdown, publish
from torch import Tensor

from draft_core import DifferentiableSampler, Draft, Objective
from draft_core.adapters.lora import ATTENTION, add_lora, trainable
from draft_core.cost.forecast import leaving_encoders
from draft_core.cost.meta_device import (
    META,
    QUANTIZED,
    build_network,
    embeddings,
    like_a_gpu,
    pipeline,
    tiles_once,
    without_numbers,
)
from draft_core.cost.peak_memory import MemoryMeter
from draft_core.cost.published import MODELS, TINY_DECODERS, Model
from draft_core.frames import FrameChoice
from draft_core.sampling import seams
from draft_core.sampling.call_traits import CallTraits
from draft_core.sampling.decoders.tiles import tile_decode
from draft_core.sampling.pipeline_call import Checkpointing, Decode
from draft_core.training.sharding import blocks, held

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "scale.md"
GIB = 2**30
DTYPE = torch.bfloat16  # of the frozen weights
RANK = 32
FLOAT32 = 4  # bytes
COPIES = 4  # of the LoRA: itself, its gradient, AdamW's two moments

# What a program gets of a card, in GiB: A10 and L4 have 22.5, RTX 3090 and 4090 24.0; H100 79.6, A100 80.0.
CARDS = {"24 GB": 22.4, "80 GB": 79.0}
NODE = 8  # GPUs

# Assumed, not measured: CUDA's context with the libraries' workspaces, and fragments between what is allocated.
CONTEXT = 1.0  # GiB
FRAGMENTS = 0.05  # of the activations


@dataclass(frozen=True)
class Settings:
    """How an update is made.

    Arguments:
        k: grad steps.
        checkpointing, decode: as in a recipe.
        size: of what is made, arguments of the pipeline's call.
        decoder: hub name of a tiny decoder that training decodes by; None for the model's own.
        quantization: component and kind, "nf4" or "int8", of frozen weights of fewer bits.
        frames: of a video, at even distances, that are scored; None for all.
        tiles: pixels of a side of what is decoded at once, a quarter of it overlapping; None for the whole.
    """

    batch: int = 1
    k: int = 1
    checkpointing: Checkpointing = False
    decode: Decode = "whole"
    size: tuple[tuple[str, int], ...] = ()
    decoder: str | None = None
    quantization: tuple[tuple[str, str], ...] = ()
    frames: int | None = None
    tiles: int | None = None


@dataclass(frozen=True)
class Activations:
    """What an update allocates beside weights, LoRA, its gradient and the optimiser, in bytes.

    Arguments:
        denoiser: kept by the recorded calls when they are over.
        decoder: kept by the decode.
        peak: the most at one time.
    """

    denoiser: int
    decoder: int
    peak: int


WHOLE = Settings()
SELECTIVE = Settings(checkpointing="selective", decode="sliced")
RECOMPUTED = Settings(checkpointing=True, decode="sliced")
BLOCKS = Settings(checkpointing="blocks", decode="blocks")
LEAN = Settings(checkpointing="lean", decode="blocks")
SLICED = Settings(checkpointing="sliced", decode="blocks")
VIDEO_BLOCKS = Settings(checkpointing="blocks", decode="sliced")  # Wan's decoder has no blocks to recompute
FRAMES = 4  # of a video
TILE = 128  # pixels
TILES = replace(VIDEO_BLOCKS, decode="tiles", tiles=TILE)
WAYS = {
    "selective": SELECTIVE,
    "true": RECOMPUTED,
    "lean": LEAN,
    "blocks": BLOCKS,
    "blocks, sliced": VIDEO_BLOCKS,
    "blocks, sliced, 4 frames": replace(VIDEO_BLOCKS, frames=FRAMES),
    "blocks, tiles": TILES,
    "blocks, tiles, 4 frames": replace(TILES, frames=FRAMES),
    "lean, tiles, 4 frames": replace(TILES, frames=FRAMES, checkpointing="lean"),
}
# Beside a way: what a recipe says under `model.quantization`; the second text encoder of FLUX, and the third of SD 3.5,
# is T5, and the only one of Wan UMT5.
T5 = {
    "FLUX.1-dev": "text_encoder_2",
    "SD3.5-large": "text_encoder_3",
    "Wan 2.1 1.3B": "text_encoder",
    "Wan 2.1 14B": "text_encoder",
}

# One row of a table: what a recipe says under `model`, and the settings that this means.
OPTIONS = {
    "nothing: everything is kept": WHOLE,
    "`gradient_checkpointing: selective`, `decode: sliced`": SELECTIVE,
    "`gradient_checkpointing: true`, `decode: sliced`": RECOMPUTED,
    "`gradient_checkpointing: lean`, `decode: blocks`": LEAN,
    "`gradient_checkpointing: sliced`, `decode: blocks`": SLICED,
    "`gradient_checkpointing: blocks`, `decode: blocks`": BLOCKS,
    "K = 2, nothing": replace(WHOLE, k=2),
    "K = 2, `gradient_checkpointing: true`, `decode: sliced`": replace(RECOMPUTED, k=2),
    "K = 2, `gradient_checkpointing: lean`, `decode: blocks`": replace(LEAN, k=2),
    "K = 2, `gradient_checkpointing: blocks`, `decode: blocks`": replace(BLOCKS, k=2),
}
EXPLAINED = ("SDXL", "FLUX.1-dev")
TINY = {"SD 1.5": "madebyollin/taesd", "SDXL": "madebyollin/taesdxl", "FLUX.1-dev": "madebyollin/taef1"}

SQUARE = (("height", 1024), ("width", 1024))
HALF = (("height", 512), ("width", 512))
VIDEO = (("height", 480), ("width", 832), ("num_frames", 17))
SHORT_VIDEO = (("height", 480), ("width", 832), ("num_frames", 9))
LONG_VIDEO = (("height", 480), ("width", 832), ("num_frames", 81))

# Model, what is made, and in which ways.
IMAGE_WAYS = ("selective", "true", "lean", "blocks")
VIDEO_WAYS = ("true", "blocks, sliced")
CASES = (
    ("SDXL", SQUARE, IMAGE_WAYS),
    ("SD3.5-medium", SQUARE, IMAGE_WAYS),
    ("SD3.5-large", SQUARE, ("blocks", "blocks, nf4", "lean, nf4")),
    ("FLUX.1-dev", HALF, ("blocks",)),
    ("FLUX.1-dev", SQUARE, IMAGE_WAYS),
    ("FLUX.1-dev", SQUARE, ("blocks, int8", "blocks, nf4", "lean, nf4")),
    ("Wan 2.1 1.3B", SHORT_VIDEO, (*VIDEO_WAYS, "blocks, tiles")),
    ("Wan 2.1 1.3B", VIDEO, (*VIDEO_WAYS, "blocks, tiles")),
    ("Wan 2.1 1.3B", LONG_VIDEO, ("blocks, sliced", "blocks, sliced, 4 frames")),
    ("Wan 2.1 1.3B", LONG_VIDEO, ("lean, tiles, 4 frames", "blocks, tiles, 4 frames")),
    ("Wan 2.1 14B", SHORT_VIDEO, ("blocks, sliced",)),
    ("Wan 2.1 14B", VIDEO, ("blocks, sliced",)),
)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    tables = {"networks": network_table(), "fits": fits_table(arguments.only)}
    for name in EXPLAINED:
        if arguments.only in (None, name):
            tables[f"options of {name}"] = option_table(name)
    tables["tiny decoders"] = decoder_table(arguments.only)
    tables["versions"] = versions()
    publish(tables, None if arguments.print_only else DOCUMENT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=MODELS, help="one model alone; only with --print-only")
    parser.add_argument("--print-only", action="store_true", help="leave docs/measurements/scale.md as it is")
    arguments = parser.parse_args()
    if arguments.only and not arguments.print_only:
        parser.error("--only would write tables with rows missing: add --print-only")
    return arguments


# One update


class ImageSide(torch.nn.Module):
    """HPS v2.1 as an update sees it: the embedding of each image; prompts are read once and remembered."""

    def __init__(self, dtype: str = "bfloat16") -> None:
        super().__init__()
        with META:
            self.reward = Hpsv2Reward(Hpsv2Config(weights="random", dtype=dtype))

    def forward(self, images: Tensor, prompts: Any) -> Tensor:
        """Something like a score for each image, (B,)."""
        return self.reward.image_features(images.float()).sum(1)


def activations(pipe: Any, objective: Objective, settings: Settings, call: Mapping[str, Any]) -> Activations:
    """What one update of DRaFT-K allocates, on whatever device the pipeline is; its denoiser carries a LoRA."""
    for parameter in trainable(pipe):
        parameter.grad = torch.zeros_like(parameter)  # counted by itself
    if settings.tiles is not None:
        tile_decode(pipe, tile_sizes(settings.tiles))
    tiny = None if settings.decoder is None else build_network(TINY_DECODERS[settings.decoder], DTYPE)
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=settings.k,
        gradient_checkpointing=settings.checkpointing,
        decode=settings.decode,
        decoder=tiny,
        frames=None if settings.frames is None else FrameChoice(settings.frames),
        **call,
    )
    if sampler.decoder is not None:
        sampler.decoder.assume(shift=0.0, scale=1.0)
    sampler.traits = CallTraits(
        settings.k
    )  # these schedulers take one step each; counting them is one more denoiser call
    kept: list[int] = []

    def on_decode(decode: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(meter.live)
        return decode(*args, **kwargs)

    tiles = tiles_once(pipe.vae, settings.decode)
    with like_a_gpu(), tiles, MemoryMeter() as meter, seams.replaced(tiny or pipe.vae, "decode", on_decode):
        rollout = sampler(plan=Draft().plan(settings.k, Random(0)), generator=torch.Generator().manual_seed(0))
        decoded = meter.live
        (-objective(rollout.images, rollout.prompts).total.mean()).backward()
    return Activations(kept[0], decoded - kept[0], meter.peak)


def tile_sizes(side: int) -> dict[str, int]:
    """A recipe's `model.tiled_decode`."""
    each = {"tile_sample_min": side, "tile_sample_stride": side * 3 // 4}
    return {f"{name}_{way}": pixels for name, pixels in each.items() for way in ("height", "width")}


# A prediction


@dataclass(frozen=True)
class Prediction:
    """What lies on a GPU, in bytes.

    Arguments:
        weights: component -> its frozen weights while an update is made.
        start: all weights, since a run moves the whole pipeline to the device before it begins.
        lora: the LoRA, its gradient and AdamW's moments.
        activations: of one image or video.
    """

    weights: Mapping[str, int]
    start: int
    lora: int
    activations: int

    def total(self, batch: int = 1) -> float:
        """GiB of an update of so many images, the allowance included; what an image takes is taken as linear."""
        allocated = sum(self.weights.values()) + self.lora + (1 + FRAGMENTS) * batch * self.activations
        return CONTEXT + max(allocated, self.start + self.lora) / GIB

    def most(self, room: float) -> int:
        """How many images fit into so many GiB."""
        return next((batch - 1 for batch in range(1, 1000) if self.total(batch) > room), 0)


def predict(name: str, settings: Settings, processes: int = 1) -> Prediction:
    """For one GPU of `processes`, which hold the denoiser in common if there are several (`train.sharding: full`)."""
    denoiser, frozen, lora, reward = weights(name, settings.quantization)
    peak = measured(name, settings).peak
    whole, largest, outside = denoiser
    share = whole if processes == 1 else held(whole - outside, largest, outside, processes)
    away = leaving_encoders(frozen)  # as prompts are remembered
    on_device = {"denoiser": share, **frozen, "reward": reward}
    return Prediction(
        weights={part: count for part, count in on_device.items() if part not in away},
        start=sum(on_device.values()),
        lora=COPIES * FLOAT32 * lora,
        activations=peak,
    )


@cache
def weights(
    name: str, quantization: tuple[tuple[str, str], ...] = ()
) -> tuple[tuple[int, int, int], dict[str, int], int, int]:
    """Bytes of the denoiser, of its largest block and of what is in no block; of the others; LoRA's numbers; reward."""
    model, kinds = MODELS[name], dict(quantization)
    built = {part: build_network(network, DTYPE, kinds.get(part)) for part, network in model.networks.items()}
    denoiser, *_ = built.values()
    each = [size(block) for block in blocks(denoiser)]
    whole = size(denoiser)
    frozen = {part: size(network) for part, network in list(built.items())[1:]}
    pipe = _with_lora(model)
    numbers = sum(parameter.numel() for parameter in trainable(pipe))
    return (whole, max(each), whole - sum(each)), frozen, numbers, size(ImageSide())


def size(network: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


@cache
def measured(name: str, settings: Settings) -> Activations:
    """What an update of the full-size model allocates beside what lies on the device for good."""
    model = MODELS[name]
    pipe = _with_lora(model, dict(settings.quantization))
    call = {**model.call, **dict(settings.size), **embeddings(model, settings.batch, DTYPE)}
    with without_numbers(pipe):
        return activations(pipe, Objective({"hpsv2": ImageSide()}), settings, call)


def _with_lora(model: Model, quantization: Mapping[str, str] | None = None) -> Any:
    pipe = pipeline(model, DTYPE, quantization)
    with META:
        add_lora(pipe, rank=RANK, targets=ATTENTION)
    return pipe


# Tables


def network_table() -> str:
    """Every network that is built, its parameters beside those of the published one, and what it weighs."""
    rows = []
    seen: set[str] = set()
    for name, model in MODELS.items():
        for part, network in model.networks.items():
            if str(network) in seen:
                continue
            seen.add(str(network))
            built = build_network(network, DTYPE)
            millions = sum(parameter.numel() for parameter in built.parameters()) / 1e6
            title = f"{name}, {part}" if network is model.denoiser else f"{part} of {name}"
            counts = (f"{millions:,.2f}", f"{network.parameters:,.2f}", gib(size(built)))
            rows.append([title, f"`{network.cls}`", *counts])
    return markdown(("network", "class", "parameters built, M", "published, M", "GiB"), rows)


def fits_table(only: str | None = None) -> str:
    rows = []
    for name, shape, ways in CASES:
        if only in (None, name):
            rows += [fits_row(name, way, replace(settings_of(name, way), size=shape)) for way in ways]
    heads = ("model, what is made", "how", "frozen", "LoRA", "each image", "at the start")
    return markdown((*heads, *CARDS, f"{NODE} x 80 GB, sharded"), rows)


def settings_of(name: str, way: str) -> Settings:
    """A way of `WAYS`, and behind it the kind of quantised weights, of the denoiser and of T5."""
    how, _, kind = way.rpartition(", ")
    if kind not in QUANTIZED:
        return WAYS[way]
    return replace(WAYS[how], quantization=((next(iter(MODELS[name].networks)), kind), (T5[name], kind)))


def fits_row(name: str, way: str, settings: Settings) -> list[str]:
    alone = predict(name, settings)
    parts = (sum(alone.weights.values()), alone.lora, alone.activations, alone.start)
    cells = [cell(alone, room) for room in CARDS.values()]
    # Quantised weights are not shared out.
    shared = "" if settings.quantization else cell(predict(name, settings, processes=NODE), CARDS["80 GB"])
    return [f"{name}, {shape_of(settings)}", way, *map(gib, parts), *cells, shared]


def cell(prediction: Prediction, room: float) -> str:
    """How many images fit, and what one takes."""
    most = prediction.most(room)
    return f"{most if most else '**no**'} ({prediction.total():.1f})"


def shape_of(settings: Settings) -> str:
    return " x ".join(str(number) for _, number in settings.size)


def option_table(name: str) -> str:
    """What one image at 1024 x 1024 takes, by option."""
    rows = []
    for title, settings in OPTIONS.items():
        found = measured(name, replace(settings, size=SQUARE))
        rows.append([title, gib(found.denoiser), gib(found.decoder), gib(found.peak)])
    heads = (f"{name}, one image of 1024 x 1024", "kept by the recorded calls", "kept by the decoder", "at the peak")
    return markdown(heads, rows)


def decoder_table(only: str | None = None) -> str:
    """What one image takes by the model's own decoder and by a tiny one."""
    rows = []
    for name, tiny in TINY.items():
        shape = HALF if name == "SD 1.5" else SQUARE
        for title, settings in (("everything is kept", WHOLE), ("`blocks`, `decode: blocks`", BLOCKS)):
            if only in (None, name):
                own = replace(settings, size=shape)
                found = [measured(name, each) for each in (own, replace(own, decoder=tiny))]
                parts = [gib(value) for each in found for value in (each.decoder, each.peak)]
                total = [f"{predict(name, each).total():.1f}" for each in (own, replace(own, decoder=tiny))]
                row = [f"{name}, {shape_of(own)}", title, *parts[::2], *parts[1::2], " -> ".join(total)]
                rows.append(row)
    heads = ("one image", "how", "kept by its decoder", "by a tiny one", "at the peak", "with a tiny one", "in all")
    return markdown(heads, rows)


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"


def versions() -> str:
    each = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    return f"{each}; bfloat16, a LoRA of rank {RANK}, DRaFT-1, HPS v2.1 in bfloat16."


if __name__ == "__main__":
    main()
