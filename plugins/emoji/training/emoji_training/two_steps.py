"""Makes the LoRA of `emoji-two-steps`: the shipped model tuned to draw in two steps, without guidance.

No distillation: three runs of DRaFT through both steps, on the preference score and the contrast, and the mean of their
LoRAs, which is better than each of them by a judge that none of them was trained on (docs/gallery.md).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from draft_core import load_recipe, run_recipe
from draft_core.adapters.mixing import mix_loras

SEEDS = (0, 1, 2)
RANK = 16  # of each run's LoRA, and of what is kept of their mean
FILE = "pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "proj_in", "proj_out", "conv_out"]


def train(work: Path, steps: int = 80) -> None:
    """Leave the mean of the runs in work/two-steps/lora; an interrupted run goes on, a finished one is kept."""
    folder = work / "two-steps"
    for seed in SEEDS:
        run_recipe(load_recipe(recipe(folder / f"seed-{seed}", seed, steps)), progress=say)
    if not (folder / "lora").exists():
        mixed = mix_loras([(folder / f"seed-{seed}", 1 / len(SEEDS)) for seed in SEEDS], folder / "lora", rank=RANK)
        print(f"two-steps: rank {RANK} holds {mixed.kept:.1%} of the mean", flush=True)


def recipe(output: Path, seed: int, steps: int) -> dict[str, Any]:
    """recipes/two-steps.yaml, hardly evaluated."""
    return {
        "model": {
            "pretrained": "emoji",
            "num_inference_steps": 2,
            "guidance_scale": 1.0,
            "lora": {"rank": RANK, "targets": TARGETS},
        },
        "prompts": "emoji-train-plain",
        "method": {"kind": "draft"},
        "rewards": [{"kind": "emoji-preference"}, {"kind": "emoji-contrast", "weight": 2}],
        "train": {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "seed": seed},
        "evaluation": {"prompts": "emoji-hard", "count": 4, "every": steps},
        "output": str(output.absolute()),
    }


def export(work: Path, model: Path) -> None:
    """Put the LoRA beside `model`, in half precision."""
    beside = model.with_name("two-steps")
    beside.mkdir(exist_ok=True)
    weights = {name: tensor.half() for name, tensor in load_file(work / "two-steps" / "lora" / FILE).items()}
    aside = beside / f"{FILE}.tmp"
    save_file(weights, aside, metadata={"format": "pt"})
    os.replace(aside, beside / FILE)
    print(f"export {(beside / FILE).stat().st_size / 1e6:.1f} MB in {beside}", flush=True)


def say(stage: str, done: int, total: int, note: str) -> None:
    """A line now and then."""
    if stage == "train" and done % 10 == 0:
        print(f"two-steps: update {done} of {total} {note}", flush=True)
