"""Run folders made of given numbers, without training: for what reads runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image

from draft_core.adapters.files import write_lora
from draft_core.adapters.lora import add_lora, trainable
from draft_core.evaluation.collapse import EvalRecord, eval_record
from draft_core.evaluation.evaluate import Evaluation
from draft_core.reporting.run_record import (
    EVALUATIONS,
    METRICS,
    RECIPE,
    Facts,
    Licence,
    RunRecord,
    append_row,
    load_images,
    read_run,
    save_images,
    scale_name,
    write_facts,
)
from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
from draft_core.training.step_report import StepReport
from draft_core.training.trainer import Trainer
from tests.support.tiny import GOOD, tiny_pipe

SMALL_SURROGATE = {"warmup": 16, "warmup_fits": 4, "fits": 2, "buffer": 24, "batch_size": 8, "width": 4}
FOUR_UPDATES: dict[str, Any] = {  # a recipe without method, rewards and output, judged and saved after two
    "model": GOOD["model"],
    "prompts": "tiny-train",
    "metrics": [{"kind": "redness"}],
    "train": {"steps": 4, "batch_size": 4, "images_per_prompt": 2, "learning_rate": 1e-2},
    "regularizers": {"kl": 0.1},
    "evaluation": {
        "prompts": "tiny-heldout",
        "count": 2,
        "images_per_prompt": 2,
        "every": 2,
        "on_collapse": "warn",
    },
    "checkpoint": {"every": 2, "keep": 9},
    "device": "cpu",
}

EVERY = 10  # updates between evaluations
PROMPTS = ("a bird", "a <b>fish</b>", "a dog", "a fox", "a cat")
SEEDS = (0, 1)


def taken_up(make: Callable[[], Trainer], folder: Path) -> Trainer:
    """A trainer that goes on from the checkpoint of another, which has made two updates."""
    first = make()
    steps = iter(first)
    next(steps), next(steps)
    save_checkpoint(first, folder / "000002")
    second = make()
    load_checkpoint(second, folder / "000002")
    return second


def saved_lora(folder: Path, *, seed: int = 0, rank: int = 2, alpha: float | None = None, targets: Any = None) -> Path:
    """A LoRA of the tiny pipeline with random factors; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _lora_files(
        seed, rank, alpha, tuple(targets) if isinstance(targets, list) else targets
    ).items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _lora_files(seed: int, rank: int, alpha: float | None, targets: Any) -> dict[str, bytes]:
    """File -> its content; made once, for many tests begin with one."""
    pipe = tiny_pipe()
    add_lora(pipe, rank=rank, alpha=alpha, targets=list(targets) if isinstance(targets, tuple) else targets)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainable(pipe):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    with TemporaryDirectory() as folder:
        write_lora(pipe, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def with_small_images(record: RunRecord, state: Any = None) -> Path:
    """In the place of `write_report`: a page, and the two images that a run shows, of 7 x 5 and 9 x 3 pixels."""
    Image.new("RGB", (7, 5), "red").save(record.folder / "curve.png")
    Image.new("RGB", (9, 3), "red").save(record.folder / "before_after.png")
    return without_pages(record, state)


def without_curves(patch: pytest.MonkeyPatch) -> None:
    """Pages are written with blank images in the place of their curves, which take most of the time of a page."""
    patch.setattr("draft_core.reporting.page.svg", lambda panel: b"<svg></svg>")
    patch.setattr("draft_core.reporting.page.save_png", lambda panels, path: Image.new("RGB", (1, 1)).save(path))


def without_pages(record: RunRecord, state: Any = None) -> Path:
    """In the place of `write_report`, whose curves take longer than a run of a few updates."""
    page = record.folder / "report.html"
    page.write_text("a page", encoding="utf-8")
    return page


def made_run(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    *,
    trained: Mapping[str, float],
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    size: int = 16,
    model: str = "tiny",
    facts: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    fading: float = 0.1,
) -> RunRecord:
    """A finished run whose evaluations have these mean scores; scores differ a little between prompts.

    Arguments:
        fading: how much darker the images are from one evaluation to the next.
    """
    folder.mkdir(parents=True)
    count = len(prompts) * len(seeds)
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, 3, size, size, generator=generator)
    spread = 0.01 * torch.rand(count, generator=generator)
    length = len(next(iter(scores.values())))
    for number in range(length):
        values = {name: means[number] + spread * (1 + number) for name, means in scores.items()}
        save_images(folder, number * EVERY, images * (1 - fading * number))
        base = Evaluation(tuple(prompts), tuple(seeds), load_images(folder, 0), {})
        seen = Evaluation(tuple(prompts), tuple(seeds), load_images(folder, number * EVERY), values)
        made = eval_record(seen, base, number * EVERY)
        append_row(folder / EVALUATIONS, EvalRecord(**{**vars(made), **(evaluation or {} if number else {})}))
    for update in range(1, (length - 1) * EVERY + 1):
        row = {"update": update, "loss": 0.0, "reward": 0.0, "grad_norm": 1.0, "learning_rate": 0.1, "seconds": 0.5}
        row["scores"] = dict.fromkeys(trained, update / 10)
        append_row(folder / METRICS, StepReport(**{**row, **(report or {})}))
    save_images(folder, scale_name(0.5), images[:: len(seeds)][:4])
    (folder / RECIPE).write_text(f"model:\n  pretrained: {model}\nprompts: x\noutput: {folder.name}\n")
    saved_lora(folder / "lora")
    known: dict[str, Any] = {
        "model": model,
        "location": "/models/tiny",
        "method": "draft-lv",
        "rewards": trained,
        "prompts": list(prompts),
        "seeds": list(seeds),
        "prompts_are_unseen": True,
        "tolerance": 2.0,
        "call": {"num_inference_steps": 3, "guidance_scale": 3.0},
        "images_per_update": 4,
        "versions": {"draft-core": "0.1.0", "diffusers": "0.42.0"},
        "licences": [Licence("model tiny", "Apache-2.0", None)],
        "device": "cpu",
        "peak_memory_bytes": 10**9,
        "seconds": 3725.0,
        "scales": [0.5],
    }
    write_facts(folder, Facts(**{**known, **(facts or {})}))
    return read_run(folder)
