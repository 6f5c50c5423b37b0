"""A run killed with SIGKILL at random moments and resumed each time ends like one that was never interrupted.

`python benchmarks/kill.py [--kills 20] [--seed 0]` trains the embedded model for a few updates in processes of its own,
prints where each was killed and where it went on, and compares weights, rewards and held-out scores bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RECIPE = """
model: {pretrained: emoji, num_inference_steps: 2, guidance_scale: 4.0, lora: {rank: 2}}
prompts: emoji-train
method: {kind: draft-lv, resamples: 1}
rewards: [{kind: jpeg, quality: 80}, {kind: emoji-clip, weight: 0.4}]
train: {steps: 12, batch_size: 2, learning_rate: 1.0e-3, normalize: scale}
evaluation: {prompts: emoji-heldout, count: 2, images_per_prompt: 2, every: 3, scales: [], on_collapse: warn}
metrics: [{kind: jpeg-size, quality: 80}]
checkpoint: {every: 1, keep: 2}
device: cpu
"""


def start(recipe: Path, output: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "draft_core", "train", str(recipe), "--set", f"output={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def updates(output: Path) -> int:
    """How many updates the run has written down."""
    file = output / "metrics.jsonl"
    return file.read_text(errors="replace").count("\n") if file.is_file() else 0


def state(output: Path) -> dict[str, Any]:
    """What must not differ: weights, rewards and held-out scores."""
    lines = {
        name: [json.loads(line) for line in (output / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluations.jsonl")
    }
    return {
        "weights": load_file(output / "lora" / "pytorch_lora_weights.safetensors"),
        "rewards": [(line["update"], line["reward"], line["scores"]) for line in lines["metrics.jsonl"]],
        "evaluations": [
            (line["update"], line["scores"], line["diversity"], line["drift"]) for line in lines["evaluations.jsonl"]
        ],
    }


def killed_often(recipe: Path, output: Path, kills: int, seconds: float, rng: random.Random) -> None:
    """Starts the run again and again, and kills it: one time in five while it starts, else amid its updates."""
    print("| kill | updates written before | when it was killed | after s |")
    print("| --- | --- | --- | --- |")
    for number in range(1, kills + 1):
        before, begun = updates(output), time.perf_counter()
        process = start(recipe, output)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.1, 0.5) * seconds)
        else:
            further = rng.randint(1, 2)
            while process.poll() is None and updates(output) < before + further:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.05) * seconds)  # into the next update, evaluation or checkpoint
        ended = process.poll() is not None
        process.kill()
        text, _ = process.communicate()
        if ended and process.returncode:
            raise SystemExit(text)
        when = "it was over" if ended else f"{updates(output)} written"
        print(f"| {number} | {before} | {when} | {time.perf_counter() - begun:.1f} |", flush=True)
        if ended:  # it has to do all of it again, and is killed on its way
            for name in ("run.json", "metrics.jsonl"):
                (output / name).unlink()
            shutil.rmtree(output / "checkpoints")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE)
        begun = time.perf_counter()
        whole = start(recipe, Path(folder) / "whole")
        text, _ = whole.communicate()
        seconds = time.perf_counter() - begun
        if whole.returncode:
            print(text)
            return 1
        output = Path(folder) / "killed"
        killed_often(recipe, output, options.kills, seconds, random.Random(options.seed))
        last = start(recipe, output)
        text, _ = last.communicate()
        if last.returncode:
            print(text)
            return 1
        one, other = state(Path(folder) / "whole"), state(output)
    weights = one.pop("weights"), other.pop("weights")
    equal = one == other and weights[0].keys() == weights[1].keys()
    equal = equal and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    print(
        f"an uninterrupted run takes {seconds:.1f} s; after {options.kills} kills:", "equal" if equal else "DIFFERENT"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
