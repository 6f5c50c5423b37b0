"""One process of several: `python part.py TASK FOLDER`, started by test_processes.py through `draft_core.launch`.

What the gradient cases build is also built alone by the test, with as many images in one batch.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from tiny import GOOD, Redness, RednessConfig, byte_tokenizer, tiny_catalog, tiny_pipe

from draft_core import DifferentiableSampler, DraftK, DraftLV, Objective, PrefixReuse, Trainer
from draft_core.errors import DraftError
from draft_core.lora import adapters_off, add_lora
from draft_core.recipe import TrainConfig, load_recipe
from draft_core.run import run_recipe

# Name -> settings of a trainer; "images" are those of one pass in all processes together.
CASES: dict[str, dict[str, Any]] = {
    "draft-k": {"estimator": DraftK(k=2)},
    "draft-lv": {"estimator": DraftLV(resamples=2)},
    "prefix reuse": {"estimator": PrefixReuse(updates=3)},
    "prefix reuse that drifts": {"estimator": PrefixReuse(updates=9, max_drift=2e-3)},
    "accumulation": {"estimator": DraftLV(resamples=1), "gradient_accumulation_steps": 2},
    "penalties and scale": {"estimator": DraftK(k=1), "kl": 0.5, "lora_norm": 0.1, "normalize": "scale"},
    "bfloat16": {"estimator": DraftLV(resamples=1), "gradient_accumulation_steps": 2, "mixed_precision": "bf16"},
    "sharded": {"estimator": DraftLV(resamples=1), "gradient_accumulation_steps": 2, "sharding": "full"},
    "sharded and recomputed": {
        "estimator": DraftK(k=2),
        "sharding": "full",
        "recompute": True,
        "kl": 0.5,
    },
    "sharded bfloat16 base": {"estimator": DraftK(k=1), "sharding": "full", "dtype": torch.bfloat16},
}


def make_trainer(
    folder: Path,
    processes: int,
    *,
    kl: float = 0.0,
    recompute: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Trainer:
    """A trainer whose processes together make four images in a pass."""
    AcceleratorState._reset_state()  # it would keep the precision of the trainer before
    estimator, lora_norm = settings.pop("estimator"), settings.pop("lora_norm", 0.0)
    pipe = tiny_pipe(tokenizer=byte_tokenizer(folder), dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=2)
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=2,
        guidance_scale=3.0,
        gradient_checkpointing=recompute,
        base_model=partial(adapters_off, pipe) if kl else None,
    )
    shared = {"steps": 2, "batch_size": 4 // processes, "learning_rate": 3e-2, "max_grad_norm": 1e9}
    return Trainer(
        sampler,
        Objective({"redness": Redness(RednessConfig())}),
        estimator,
        ["a", "b", "c"],
        device="cpu",
        kl=kl,
        lora_norm=lora_norm,
        **TrainConfig(**{**shared, **settings}).model_dump(),
    )


def gradients(one: Trainer) -> dict[str, Any]:
    """The gradients of the optimiser steps of two updates, and what was reported of them."""
    taken: list[torch.Tensor] = []
    step = one.optimizer.step

    def spy() -> None:
        taken.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters]))
        step()

    one.optimizer.step = spy
    reports = [[report.loss, report.reward, report.grad_norm, report.optimizer_steps] for report in one]
    return {"gradients": taken, "reports": reports}


def recipe_of(folder: Path, catalog: Any, *overrides: str) -> Any:
    """A short run with looks, held-out scores and checkpoints, four images an update."""
    data = {
        **GOOD,
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 3e-2},
        "evaluation": {"prompts": "tiny-heldout", "count": 2, "images_per_prompt": 2, "every": 2, "tolerance": 99},
        "measures": [{"kind": "brightness"}],
        "checkpoint": {"every": 1, "keep": 9},
        "device": "cpu",
        "output": str(folder / "run"),
    }
    return load_recipe(data, overrides, catalog=catalog)


def main(task: str, folder: Path) -> int:
    torch.set_num_threads(1)
    place = int(os.environ["RANK"])
    if task == "gradients":
        found = {}
        for name, settings in CASES.items():
            one = make_trainer(folder / f"tokens {place}", 2, **settings)
            found[name] = gradients(one)
            if name == "sharded":
                pipe = one.sampler.pipe
                local = sum(
                    getattr(weight, "_local_tensor", weight).numel()
                    for weight in pipe.unet.parameters()
                    if not weight.requires_grad
                )
                whole = sum(weight.numel() for weight in pipe.unet.parameters() if not weight.requires_grad)
                found["held"] = local / whole
                found["seen"] = [pipe.unet.config.sample_size, str(pipe.unet.dtype), str(pipe.unet.device)]
        torch.save(found, folder / f"gradients-{place}.pt")
    catalog = tiny_catalog(folder / "catalog")  # the test has made it: of several processes only one can save
    lines = []
    overrides = {"forever": ["train.steps=100000", "evaluation.every=99999"], "whole": ["train.steps=4"]}

    def progress(stage: str, done: int, total: int, note: str) -> None:
        lines.append(f"{stage} {done} {note}")

    try:
        run_recipe(
            recipe_of(folder, catalog, *overrides["forever" if task == "forever" else "whole"]),
            catalog,
            progress=progress,
        )
    except DraftError as error:
        (folder / f"error-{place}").write_text(str(error))
        return 0 if place else error.exit_code
    finally:
        (folder / f"lines-{place}").write_text("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
