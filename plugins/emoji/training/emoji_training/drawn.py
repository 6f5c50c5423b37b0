"""Draws every concept by the shipped model, well and badly: the preference scorer learns from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from . import captions, pictures

CHUNK = 32
STYLES = list(pictures.STYLES)


@dataclass(frozen=True)
class Setting:
    """How a drawing is sampled."""

    steps: int
    guidance: float


# The best first, by eye: 20 steps with guidance are as good as this model gets, 4 without it are soft and often wrong.
SETTINGS = (Setting(20, 4.0), Setting(8, 2.0), Setting(4, 1.0), Setting(2, 1.0))


@dataclass(frozen=True)
class Drawing:
    """What one drawing was asked for, and how it was sampled. `style` is "" where none was asked for."""

    concept: int
    style: str
    setting: int


def prepare(work: Path, model: Path) -> None:
    """Write `drawings.npy` (uint8 (N, 64, 64, 3)) and `drawings.json` under work/drawn, by parts that a kill keeps."""
    folder = work / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    phrases = pictures.phrases()
    wanted = plan(len(phrases))
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for i in range(0, len(wanted), CHUNK):
        file = folder / f"part-{i // CHUNK:04d}.npy"
        if not file.exists():
            save(file, draw(pipeline, wanted[i : i + CHUNK], phrases))
            print(f"drawn {min(i + CHUNK, len(wanted))} of {len(wanted)}", flush=True)
        parts.append(np.load(file))
    save(folder / "drawings.npy", np.concatenate(parts))
    (folder / "drawings.json").write_text(json.dumps([asdict(d) for d in wanted]), encoding="utf-8")


def load(work: Path) -> tuple[np.ndarray, list[Drawing]]:
    """The drawings (uint8 (N, 64, 64, 3)) and what is known of each, as `prepare` left them."""
    meta = json.loads((work / "drawn" / "drawings.json").read_text(encoding="utf-8"))
    return np.load(work / "drawn" / "drawings.npy"), [Drawing(**m) for m in meta]


def plan(concepts: int) -> list[Drawing]:
    """Every concept without a style and in one, at every setting; whole chunks share a setting."""
    found: list[Drawing] = []
    for number in range(len(SETTINGS)):
        found += [Drawing(c, "", number) for c in range(concepts)]
        found += [Drawing(c, STYLES[c % len(STYLES)], number) for c in range(concepts)]
        found += found[-1:] * (-len(found) % CHUNK)
    return found


def draw(pipeline: StableDiffusionPipeline, drawings: Sequence[Drawing], phrases: Sequence[str]) -> np.ndarray:
    """uint8 (N, 64, 64, 3), each from a noise of its own."""
    setting = SETTINGS[drawings[0].setting]
    drawn = pipeline(
        [prompt(d, phrases) for d in drawings],
        num_inference_steps=setting.steps,
        guidance_scale=setting.guidance,
        generator=[torch.Generator().manual_seed(seed_of(d)) for d in drawings],
        output_type="np",
    ).images
    return (drawn * 255).round().astype(np.uint8)


def prompt(drawing: Drawing, phrases: Sequence[str]) -> str:
    """The caption that asks for the drawing."""
    phrase = phrases[drawing.concept]
    return f"{captions.styled(drawing.style)}, {phrase}" if drawing.style else phrase


def seed_of(drawing: Drawing) -> int:
    """A seed for each drawing that no other shares, but those that fill a chunk."""
    return 1_000_000 + (drawing.setting * 2 + bool(drawing.style)) * 1000 + drawing.concept


def save(file: Path, array: np.ndarray) -> None:
    """Write aside and rename, so that a kill never leaves half a file."""
    aside = file.with_suffix(".tmp.npy")
    np.save(aside, array)
    os.replace(aside, file)
