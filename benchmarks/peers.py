"""Our update and our way to a mark beside TRL's AlignProp, in one run on the embedded model, in turns.

    python benchmarks/peers.py            # adds a line to docs/measurements/peers.md; ten minutes of one core
    python benchmarks/peers.py --print-only --rounds 1 --seeds 0

TRL is installed into an environment of its own under runs/peers, which borrows all else from the present one, so that
both run the same torch, diffusers and peft. AlignProp with `truncated_backprop_rand=False` is DRaFT-K, and it always
recomputes each denoiser call in the backward pass. Both train a LoRA of rank 4 on attention on the `jpeg` reward, four
images of 20 steps an update. Seconds are of the processor on one thread, memory is the peak of tensors beside what lies
there before. The mark is that of `benchmarks/compare.py`: real files of held-out prompts 8 % smaller.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import site
import subprocess
import sys
import time
import types
import venv
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging
from emoji_judges import ALIGNMENT, BYTES, FLOOR, MARK, make_judge
from tables import crossing, in_turns

from draft_core import (
    DifferentiableSampler,
    DraftK,
    Objective,
    Trainer,
    TrainSettings,
    load_catalog,
    load_pipeline,
    load_reward,
)
from draft_core.adapters.lora import add_lora
from draft_core.cost.peak_memory import peak_memory
from draft_core.learners.direct import DirectLearner
from draft_core.recipe.resolve import resolve_prompts

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "peers.md"
VERSION = "0.23.1"  # the last with AlignPropTrainer
STEPS, BATCH, GUIDANCE, RANK, RATE = 20, 4, 4.0, 4, 8e-3
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
MOST_UPDATES, IMAGES = 16, 8
PEER = "AlignProp"
OURS: dict[str, dict[str, Any]] = {  # name -> settings of the sampler
    "ours": {},
    "recomputed": {"gradient_checkpointing": True},
    "lean": {"gradient_checkpointing": "lean", "decode": "selective"},
    "in halves": {"gradient_checkpointing": "halves", "decode": "selective"},
    "sliced": {"gradient_checkpointing": "sliced", "decode": "sliced"},
}

Update = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if not options.inside:
        interpreter = environment(options.folder)
        passed = sys.argv[1:] if arguments is None else list(arguments)
        subprocess.run([interpreter, __file__, "--inside", *passed], check=True, env={**os.environ, "PYTHONPATH": ""})
        return
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    row = [date.today().isoformat(), versions()]
    for k in (1, 5):
        found = costs(k, options.rounds)
        print(f"K = {k}: {json.dumps(found)}", flush=True)
        row += cells(found)
    row += [*ways(range(options.seeds))] if options.seeds else ["-", "-"]
    line = f"| {' | '.join(row)} |"
    print(line, flush=True)
    if not options.print_only:
        append(line)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="of TRL's environment")
    parser.add_argument("--rounds", type=int, default=5, help="updates that are timed")
    parser.add_argument("--seeds", type=int, default=1, help="runs to the mark; 0 for none")
    parser.add_argument("--print-only", action="store_true", help="leave docs/measurements/peers.md as it is")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def environment(folder: Path) -> str:
    """The interpreter of an environment with TRL, made where it is not there yet."""
    interpreter = folder / "bin" / "python"
    if not interpreter.is_file():
        venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "borrowed.pth").write_text("".join(lines), encoding="utf-8")
    if not (packages / f"trl-{VERSION}.dist-info").is_dir():
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", f"trl=={VERSION}"]
        subprocess.run(command, check=True)
    return str(interpreter)


def versions() -> str:
    names = ("draft-core", "trl", "torch", "diffusers")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


# Updates


def peer(k: int, seed: int, *, updates: int) -> tuple[Any, Update]:
    """TRL's trainer on the embedded model: its pipeline, and what makes its next update."""
    unused: Any = types.ModuleType("trl.trainer.utils")  # it imports pandas and more, for the card of the model
    unused.generate_model_card = unused.get_comet_experiment_url = None
    sys.modules.setdefault(unused.__name__, unused)
    config = importlib.import_module("trl.trainer.alignprop_config")
    trainers = importlib.import_module("trl.trainer.alignprop_trainer")
    models = importlib.import_module("trl.models.modeling_sd_base")
    PartialState(cpu=True)  # before it logs
    pipe = load_pipeline("emoji")

    class Pipeline(models.DefaultDDPOStableDiffusionPipeline):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.sd_pipeline, self.use_lora = pipe, True
            for network in (pipe.vae, pipe.text_encoder, pipe.unet):
                network.requires_grad_(False)

    reward, prompts = load_reward("jpeg"), listed(seed)
    settings = config.AlignPropConfig(
        seed=seed,
        mixed_precision="no",
        sample_num_steps=STEPS,
        sample_eta=0.0,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=BATCH,
        train_learning_rate=RATE,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=STEPS - k,
        save_freq=updates + 1,
    )
    trainer = trainers.AlignPropTrainer(
        settings, lambda images, texts, _: (reward(images, texts), {}), lambda: (next(prompts), {}), Pipeline()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, lambda: trainer.step(0, 0)


def ours(k: int, seed: int, *, updates: int, **kept: Any) -> tuple[Any, Update]:
    """The same by the library, which keeps for the backward pass what a sampler's settings say."""
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)
    add_lora(pipe, rank=RANK, targets=TARGETS)
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0, **kept)
    settings = TrainSettings(steps=updates, batch_size=BATCH, learning_rate=RATE, weight_decay=1e-4, seed=seed)
    prompts = resolve_prompts("emoji-train", load_catalog())
    objective = Objective({"jpeg": load_reward("jpeg")})
    trainer = Trainer(sampler, objective, DirectLearner(DraftK(k=k)), prompts, settings, device="cpu")
    assert sampler.steps == STEPS  # counted now, so that the first update need not
    return pipe, trainer.train_step


def listed(seed: int) -> Any:
    """The prompts that are trained on, shuffled, without end."""
    prompts = resolve_prompts("emoji-train", load_catalog())
    Random(seed).shuffle(prompts)
    return cycle(prompts)


def costs(k: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds of an update, and its peak in MiB; the trainers take turns."""
    count = rounds + 2
    updates = {PEER: peer(k, 0, updates=count)[1]}
    updates |= {name: ours(k, 0, updates=count, **kept)[1] for name, kept in OURS.items()}
    seconds = in_turns(updates, rounds)
    return {name: (seconds[name], peak_memory(update) / 2**20) for name, update in updates.items()}


def cells(found: dict[str, tuple[float, float]]) -> list[str]:
    """Of the peer its seconds and MiB; of ours the ratios to them."""
    seconds, memory = found[PEER]
    return [
        f"{seconds:.2f} s, {memory:.0f} MiB",
        *(f"{found[name][0] / seconds:.2f}, {found[name][1] / memory:.2f}" for name in OURS),
    ]


# The way to the mark


def ways(seeds: Sequence[int]) -> tuple[str, str]:
    """Updates, seconds and alignment at the mark with K = 1, of the peer and of ours."""
    return tuple(told([way(make, seed) for seed in seeds]) for make in (peer, ours))  # type: ignore[return-value]


def way(make: Any, seed: int) -> tuple[float, float, float] | None:
    """Updates, seconds and share of the alignment where files are as small as the mark says; None if nowhere."""
    pipe, update = make(1, seed, updates=MOST_UPDATES)
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    judge, seconds = make_judge(sampler, IMAGES, BYTES, ALIGNMENT), 0.0
    base = before = judge()
    wanted = MARK * base[BYTES]  # bytes count downwards: scores are minus kilobytes
    for number in range(1, MOST_UPDATES + 1):
        begun = time.process_time()
        update()
        seconds += time.process_time() - begun
        now = judge()
        print(f"{make.__name__} {seed}: update {number}, {now}", flush=True)
        ends = [{"updates": number - 1, **before}, {"updates": number, **now}]
        if mark := crossing(ends, BYTES, wanted):
            return mark["updates"], seconds * mark["updates"] / number, mark[ALIGNMENT] / base[ALIGNMENT]
        before = now
    return None


def told(found: Sequence[tuple[float, float, float] | None]) -> str:
    reached = [point for point in found if point is not None]
    if not reached:
        return f"0 of {len(found)}"
    updates, seconds, kept = (fmean(column) for column in zip(*reached, strict=True))
    low = "" if kept >= FLOOR else ", below the floor"
    return f"{len(reached)} of {len(found)}: {updates:.1f} updates, {seconds:.1f} s, alignment {100 * kept:.0f} %{low}"


def append(line: str) -> None:
    """Adds it to the table of the page, whose older lines stay."""
    end = "<!-- end of history -->"
    before, _, after = DOCUMENT.read_text(encoding="utf-8").partition(end)
    DOCUMENT.write_text(f"{before}{line}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
