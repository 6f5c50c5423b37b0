"""One of four processes, two on each of two machines: what tests.support.ranks runs for test_hybrid_sharding.py.

That there are two machines is only said.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import fsdp  # noqa: F401 once for all
from torch.distributed.tensor import DTensor

from draft_core import DraftLV
from draft_core.errors import DraftError
from draft_core.runs.run import run_recipe
from draft_core.sampling.pipelines import find_denoisers
from tests.support.part import gradients, held, make_trainer, recipe_of
from tests.support.runs import without_curves
from tests.support.tiny import tiny_catalog

CASE: dict[str, Any] = {"method": DraftLV(resamples=1), "kl": 0.5}
SHORT = ("evaluation.count=1", "evaluation.scales=[]", "evaluation.every=9", "metrics=[]")
RUN = ("train.batch_size=1", "train.sharding=hybrid", "evaluation.images_per_prompt=1", *SHORT)


def refusal(folder: Path, processes: int) -> str:
    """What is said of a machine with so many processes."""
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    try:
        make_trainer(folder, 4, **CASE, sharding="hybrid")
    except DraftError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Gradients, images and what is held; then a run in two parts; then what is refused."""
    torch.set_num_threads(1)
    without_curves(pytest.MonkeyPatch())
    place = int(os.environ["RANK"])
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    one = make_trainer(folder / f"tokens {place}", 4, **CASE, sharding="hybrid")
    (denoiser,) = find_denoisers(one.sampler.pipe).values()
    meshes = {str(it.device_mesh.mesh.tolist()) for it in denoiser.parameters() if isinstance(it, DTensor)}
    found = {"images": one.draw(["a"], seed=3).images, **gradients(one), "held": held(denoiser), "meshes": [*meshes]}
    torch.save(found, folder / f"hybrid-{place}.pt")
    catalog = tiny_catalog(folder / "catalog")
    run_recipe(recipe_of(folder, catalog, *RUN, "train.steps=1"), catalog)
    run_recipe(recipe_of(folder, catalog, *RUN, "train.steps=2"), catalog, resume=True)
    said = [refusal(folder / f"tokens {place}", 1), refusal(folder / f"tokens {place}", 2 if place < 2 else 1)]
    (folder / f"refused-{place}").write_text("\n".join(said), encoding="utf-8")
