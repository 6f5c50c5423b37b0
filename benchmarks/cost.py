"""What an update costs, in time and memory, beside the least it could cost and beside what others do.

    python benchmarks/cost.py            # writes its tables into docs/measurements/cost.md; ten minutes or more
    python benchmarks/cost.py --help

For each case the same LoRA, prompts, reward and batch go through four kinds of update:

- ours: `Trainer.train_step`, everything an update does;
- ideal: the network calls that the method cannot do without, one after another on recorded inputs: the denoiser
  T - K times without gradient and K times with it (and once more where it is recomputed), decoder and reward, each
  forward and backward. No prompt encoding, no scheduler, no optimiser. For DRaFT-LV, 1 + n last calls.
- neighbour: the pipeline's call with autograd recording everywhere and the predictions before the last K detached,
  as the removed AlignProp trainer of TRL did; the re-noisings of DRaFT-LV added to one graph;
- naive: the pipeline's call with autograd recording everywhere, the full graph kept.

Machines are shared and noisy, so the kinds take turns (A B C A B C ...), and a ratio is the median over rounds of the
ratio inside one round. Seconds are of the processor (`time.process_time`) on one thread, with wall time beside them.
Memory is the peak of tensor storage above what model, LoRA and optimiser hold, from one more update of each kind
(`draft_core.cost.peak_memory`): on the CPU it is exact and the same in every run.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from tables import markdown, publish
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from draft_core import DifferentiableSampler, DraftK, Objective, Trainer
from draft_core.adapters.lora import ADAPTER, add_lora
from draft_core.cost.peak_memory import peak_memory
from draft_core.learners.direct import DirectLearner
from draft_core.plan import Method, StepPlan
from draft_core.recipe.load import load_recipe
from draft_core.runs.build import build
from draft_core.sampling import pipelines, seams
from draft_core.training.settings import TrainSettings

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "cost.md"
MEGABYTE = 1e6

Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One row: a method on the embedded model, and how it is run."""

    title: str
    method: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    batch: int = 2
    kinds: tuple[str, ...] = ("ours", "ideal", "neighbour")


DRAFT_1 = {"kind": "draft-k", "k": 1}
DRAFT_5 = {"kind": "draft-k", "k": 5}
DRAFT_LV = {"kind": "draft-lv", "resamples": 2}
RECOMPUTE = {"gradient_checkpointing": True}
LEAN = {**RECOMPUTE, "decode": "sliced"}
SELECTIVE_CALLS = {"gradient_checkpointing": "selective"}
SELECTIVE = {**SELECTIVE_CALLS, "decode": "selective"}

CASES = (
    Case("DRaFT-1", DRAFT_1),
    Case("DRaFT-1, 50 steps", DRAFT_1, steps=50, batch=1),
    Case("DRaFT-1, selective", DRAFT_1, SELECTIVE),
    Case("DRaFT-1, recomputed", DRAFT_1, RECOMPUTE),
    Case("DRaFT-K, K = 5", DRAFT_5),
    Case("DRaFT-K, K = 5, denoiser selective", DRAFT_5, SELECTIVE_CALLS),
    Case("DRaFT-K, K = 5, selective", DRAFT_5, SELECTIVE),
    Case("DRaFT-K, K = 5, selective, 50 steps", DRAFT_5, SELECTIVE, steps=50, batch=1),
    Case("DRaFT-K, K = 5, recomputed", DRAFT_5, RECOMPUTE),
    Case("DRaFT-K, K = 5, recomputed, 50 steps", DRAFT_5, RECOMPUTE, steps=50, batch=1),
    Case("DRaFT-LV, n = 2", DRAFT_LV),
    Case(
        "DRaFT, all steps, recomputed and decoded in slices", {"kind": "draft"}, LEAN, kinds=("ours", "ideal", "naive")
    ),
)

# Tiny random pipelines, from the tests: networks of a few milliseconds, so that what stands beside them shows.
FAMILIES = ("Stable Diffusion XL", "Stable Diffusion 3", "FLUX.1")
SECOND_CALL = ("true_cfg_scale", "negative_prompt")  # left out, so that the denoiser is called once a step


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    tables = {"cases": case_table(arguments.rounds), "options": option_table(arguments.rounds)}
    tables["families"] = family_table(arguments.rounds)
    tables["machine"] = machine(time.perf_counter() - start)
    publish(tables, None if arguments.print_only else DOCUMENT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="how often the kinds of update take turns, default 4")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, default 1")
    parser.add_argument("--print-only", action="store_true", help="leave docs/measurements/cost.md as it is")
    return parser.parse_args()


# The kinds of update


def emoji_trainer(case: Case, **more: Any) -> Trainer:
    model = {"pretrained": "emoji", "num_inference_steps": case.steps, "guidance_scale": 4.0, **case.model, **more}
    recipe = {
        "model": model,
        "prompts": "emoji-train",
        "method": case.method,
        "rewards": [{"kind": "jpeg"}, {"kind": "emoji-clip"}],
        "train": {"batch_size": case.batch, "learning_rate": 1e-5},
        "device": "cpu",
    }
    return build(load_recipe(recipe))


class Recorded:
    """A context that takes down what denoiser and decoder are called with."""

    def __init__(self, trainer: Trainer) -> None:
        self.vae = trainer.sampler.pipe.vae
        _, self.denoiser = pipelines.find_denoiser(trainer.sampler.pipe)
        self.calls: list[tuple[Any, Any]] = []  # of the denoiser
        self.decoded: list[Tensor] = []  # inputs of the decoder

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(seams.replaced(self.denoiser, "forward", self.on_denoise))
        self.stack.enter_context(seams.replaced(self.vae, "decode", self.on_decode))

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def on_denoise(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(seams.mapped(Tensor.detach, (args, kwargs)))
        return forward(*args, **kwargs)

    def on_decode(self, decode: Any, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.decoded.append(latents.detach())
        return decode(latents, *args, **kwargs)


class Ideal:
    """The network calls of one update on recorded inputs, and nothing else."""

    def __init__(self, trainer: Trainer, plan: StepPlan) -> None:
        self.trainer = trainer
        self.plan = plan
        self.prompts, generator = drawn(trainer)
        self.seen = Recorded(trainer)
        with torch.no_grad(), self.seen:
            call_pipeline(trainer, self.prompts, generator)

    def __call__(self) -> None:
        first = min(self.plan.grad_steps)
        with torch.no_grad():
            for args, kwargs in self.seen.calls[:first]:
                self.seen.denoiser(*args, **kwargs)
        self._recorded(self.seen.calls[first:])
        for _ in range(method_of(self.trainer).renoising().copies):
            self._recorded(self.seen.calls[-1:])
        for parameter in self.trainer.parameters:
            parameter.grad = None

    def _recorded(self, calls: Sequence[tuple[Any, Any]]) -> None:
        """Denoiser calls that are chained like steps, decoder, reward, and the way back."""
        latents = seams.denoiser_input(*calls[0])
        recompute = self.trainer.sampler.gradient_checkpointing is True
        denoise = partial(checkpoint, self.seen.denoiser, use_reentrant=False) if recompute else self.seen.denoiser
        for args, kwargs in calls:
            latents = moved(denoise, latents, args, kwargs)
        images = decoded_like(self.trainer, latents, self.seen.decoded[0])
        (-self.trainer.objective(images, self.prompts).total.mean()).backward()


def moved(denoise: Any, latents: Tensor, args: Any, kwargs: Any) -> Tensor:
    """Latents after something like a step, from a denoiser call with these arguments but for the latents."""
    recorded = seams.denoiser_input(args, kwargs)

    def put(value: Any) -> Any:
        return latents if value is recorded else value

    output = denoise(*map(put, args), **{name: put(value) for name, value in kwargs.items()})
    return latents - 0.1 * seams.tensors_in(output)[0]


def decoded_like(trainer: Trainer, latents: Tensor, batch: Tensor) -> Tensor:
    """Images of as many of the latents as were decoded in `batch`, the way the sampler decodes."""
    latents = latents.flatten()[: batch.numel()].view_as(batch)
    decode, how = trainer.sampler.pipe.vae.decode, trainer.sampler.decode
    if how in ("whole", "selective"):
        outputs = [decode(latents)]
    else:
        slices = torch.split(latents, 1) if how == "sliced" else [latents]
        outputs = [checkpoint(decode, one, use_reentrant=False) for one in slices]
    return (torch.cat([seams.tensors_in(one)[0] for one in outputs]) / 2 + 0.5).clamp(0, 1)


def neighbour(trainer: Trainer, plan: StepPlan) -> None:
    """Autograd records every call, and the predictions before the recorded ones are detached."""
    first = min(plan.grad_steps)
    seen = Recorded(trainer)

    def detached(forward: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return seams.mapped(Tensor.detach, output) if len(seen.calls) <= first else output

    prompts, generator = drawn(trainer)
    with seams.replaced(seen.denoiser, "forward", detached), seen:
        images = [call_pipeline(trainer, prompts, generator)]
    args, kwargs = seen.calls[-1]
    for _ in range(method_of(trainer).renoising().copies):
        latents = seams.denoiser_input(args, kwargs).detach()
        latents = moved(seen.denoiser, latents + 0.01 * torch.randn_like(latents), args, kwargs)
        images.append(decoded_like(trainer, latents, seen.decoded[0]))
    update(trainer, torch.cat(images), prompts * len(images))


def naive(trainer: Trainer, plan: StepPlan) -> None:
    """Autograd records every call and keeps all of it."""
    prompts, generator = drawn(trainer)
    update(trainer, call_pipeline(trainer, prompts, generator), prompts)


def method_of(trainer: Trainer) -> Method:
    assert isinstance(trainer.learner, DirectLearner)
    return trainer.learner.method


def drawn(trainer: Trainer) -> tuple[list[str], Any]:
    """Prompts and noise of the first batch."""
    (batch,) = trainer.batches.draw(0)
    return list(batch.prompts), list(batch.generators)


def call_pipeline(trainer: Trainer, prompts: Sequence[str], generator: Any) -> Tensor:
    """The images of the pipeline's own call, recorded as the caller records."""
    sampler = trainer.sampler
    with pipelines.quiet(sampler.pipe):
        images: Tensor = inspect.unwrap(type(sampler.pipe).__call__)(
            sampler.pipe,
            list(prompts),
            num_inference_steps=sampler.num_inference_steps,
            generator=generator,
            output_type="pt",
            **sampler.call_kwargs,
        ).images
    return images


def update(trainer: Trainer, images: Tensor, prompts: Sequence[str]) -> None:
    (-trainer.objective(images, prompts).total.mean()).backward()
    torch.nn.utils.clip_grad_norm_(trainer.parameters, trainer.settings.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def works_of(trainer: Trainer, kinds: Sequence[str]) -> dict[str, Work]:
    """Kind of update -> it, all on one model."""
    plan = method_of(trainer).plan(trainer.sampler.steps, Random(0))
    works: dict[str, Callable[[], Work]] = {
        "ours": lambda: trainer.train_step,
        "ideal": lambda: Ideal(trainer, plan),
        "neighbour": lambda: partial(neighbour, trainer, plan),
        "naive": lambda: partial(naive, trainer, plan),
    }
    return {kind: works[kind]() for kind in kinds}


# Tables


def case_table(rounds: int) -> str:
    rows = []
    for case in CASES:
        works = works_of(emoji_trainer(case), case.kinds)
        memory = {kind: memory_of(work) for kind, work in works.items()}
        measured = in_turns(works, rounds)
        other = case.kinds[-1]
        seconds = statistics.median(measured["ours"].processor)
        rows.append(
            [
                f"{case.title}, B = {case.batch}",
                f"{seconds:.2f} ({statistics.median(measured['ours'].wall):.2f})",
                f"{memory['ours'] / MEGABYTE:.0f}",
                ratio(measured, "ours", "ideal"),
                f"{memory['ours'] / memory['ideal']:.2f}",
                other,
                ratio(measured, "ours", other),
                f"{memory[other] / memory['ours']:.1f} x less",
            ]
        )
    heads = (
        *("case", "seconds of an update (wall)", "peak MB", "time to ideal", "memory to ideal"),
        *("beside", "time to it", "memory than it"),
    )
    return markdown(heads, rows)


def option_table(rounds: int) -> str:
    """Each candidate against the plain trainer, DRaFT-LV."""
    case = Case("", DRAFT_LV)
    plain = emoji_trainer(case)
    candidates = {title: make(case) for title, make in CANDIDATES.items()}
    works: dict[str, Work] = {"plain": plain.train_step, **{title: one.train_step for title, one in candidates.items()}}
    memory = {kind: memory_of(work) for kind, work in works.items()}
    measured = in_turns(works, rounds)
    rows = [[title, ratio(measured, title, "plain"), f"{memory[title] / memory['plain']:.2f}"] for title in candidates]
    return markdown(("candidate, DRaFT-LV, n = 2, B = 2", "time to plain", "memory to plain"), rows)


def together(case: Case) -> Trainer:
    return emoji_trainer(replace(case, method={**case.method, "batched": True}))


def channels_last(case: Case) -> Trainer:
    trainer = emoji_trainer(case)
    for name in ("unet", "vae"):
        getattr(trainer.sampler.pipe, name).to(memory_format=torch.channels_last)
    return trainer


def fused_prefix(case: Case) -> Trainer:
    """The LoRA added into the weights as long as autograd is off, from a copy of the base weights each time."""
    trainer = emoji_trainer(case)
    unet = trainer.sampler.pipe.unet
    layers = [layer for layer in unet.modules() if isinstance(layer, LoraLayer)]
    base = [layer.get_base_layer().weight.data for layer in layers]
    fused = [False]

    def fuse(wanted: bool) -> None:
        if fused[0] == wanted:
            return
        for layer, weight in zip(layers, base, strict=True):
            layer.get_base_layer().weight.data = weight + layer.get_delta_weight(ADAPTER) if wanted else weight
        (unet.disable_adapters if wanted else unet.enable_adapters)()
        fused[0] = wanted

    def on_denoise(forward: Any, *args: Any, **kwargs: Any) -> Any:
        fuse(not torch.is_grad_enabled())
        return forward(*args, **kwargs)

    seams.replaced(unet, "forward", on_denoise).__enter__()  # as long as the trainer lives
    return trainer


def compiled(case: Case) -> Trainer:
    """Each kind of repeated block of the denoiser compiled once for each of its shapes, by the first updates."""
    trainer = emoji_trainer(case)
    trainer.sampler.pipe.unet.compile_repeated_blocks()
    return trainer


CANDIDATES: dict[str, Callable[[Case], Trainer]] = {
    "prompts remembered (`model.remember_prompts`)": lambda case: emoji_trainer(case, remember_prompts=True),
    "LoRA fused into the weights in the steps without gradient": fused_prefix,
    "re-noisings in one batch (`method.batched`)": together,
    "channels last": channels_last,
    "regional compilation (`compile_repeated_blocks`)": compiled,
    "bfloat16 weights (`model.dtype`)": lambda case: emoji_trainer(case, dtype="bfloat16"),
}


def family_table(rounds: int) -> str:
    """DRaFT-1 on tiny pipelines: what an update adds to the network calls, in milliseconds."""
    rows = []
    for name in FAMILIES:
        works = works_of(family_trainer(name, steps=10), ("ours", "ideal", "neighbour"))
        for work in works.values():
            work()
        measured = in_turns(works, 2 * rounds)
        ours, ideal = (statistics.median(measured[kind].processor) for kind in ("ours", "ideal"))
        step = f"{1e3 * (ours - ideal) / 10:.1f}"
        rows.append([name, f"{1e3 * ours:.0f}", f"{1e3 * ideal:.0f}", step, ratio(measured, "ours", "neighbour")])
    heads = ("family, DRaFT-1, T = 10, B = 2", "ms of an update", "ideal", "difference a step")
    return markdown((*heads, "time to neighbour"), rows)


def family_trainer(name: str, steps: int) -> Trainer:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are no distribution
    families, tiny = import_module("tests.support.families"), import_module("tests.support.tiny")
    family = next(family for family in families.FAMILIES if family.name == name)
    pipe = family.pipe()
    add_lora(pipe, rank=2)
    call = {name: value for name, value in family.call(torch.float32).items() if name not in SECOND_CALL}
    sampler = DifferentiableSampler(pipe, num_inference_steps=steps, **call)
    objective = Objective({"redness": tiny.Redness(tiny.RednessConfig())})
    settings = TrainSettings(batch_size=2, learning_rate=1e-5)
    return Trainer(sampler, objective, DirectLearner(DraftK(k=1)), family.prompts, settings, device="cpu")


@dataclass
class Seconds:
    """What one kind of update took, round by round."""

    processor: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def in_turns(works: dict[str, Work], rounds: int) -> dict[str, Seconds]:
    """Kind -> seconds of each round; every kind has run before, for its memory."""
    measured = {kind: Seconds() for kind in works}
    for _ in range(rounds):
        for kind, work in works.items():
            wall, processor = time.perf_counter(), time.process_time()
            work()
            measured[kind].processor.append(time.process_time() - processor)
            measured[kind].wall.append(time.perf_counter() - wall)
    return measured


def memory_of(work: Work) -> int:
    work()  # optimiser state and caches exist from the first update on
    gc.collect()
    return peak_memory(work)


def ratio(measured: dict[str, Seconds], kind: str, other: str) -> str:
    each = [mine / theirs for mine, theirs in zip(measured[kind].processor, measured[other].processor, strict=True)]
    return f"{statistics.median(each):.2f}"


def machine(seconds: float) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "peft", "accelerate"))
    return (
        f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread, "
        f"Python {platform.python_version()}, {versions}; {seconds:.0f} s in all."
    )


if __name__ == "__main__":
    main()
