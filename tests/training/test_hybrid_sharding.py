"""`train.sharding: hybrid`: two machines of two processes hold one denoiser each, and compute what one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.cost.forecast import Forecast, Memory, frozen_bytes, shared_out
from draft_core.runs.run import run_recipe
from draft_core.training.sharding import blocks, held
from tests.support import hybrid_part
from tests.support.families import FAMILIES
from tests.support.part import gradients, make_trainer, recipe_of
from tests.support.tiny import tiny_catalog

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four processes have left what they found."""
    folder = tmp_path_factory.mktemp("machines")
    tiny_catalog(folder / "catalog")
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.ranks", "4", "tests.support.hybrid_part", str(folder)],
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_images_and_gradients_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    found = [torch.load(folder / f"hybrid-{place}.pt", weights_only=True) for place in range(4)]
    one = make_trainer(tmp_path, 1, **hybrid_part.CASE)
    images, alone = one.draw(["a"], seed=3).images, gradients(one)
    for mine in found:
        torch.testing.assert_close(mine["images"], images, rtol=1e-5, atol=1e-6)
        for gradient, whole in zip(mine["gradients"], alone["gradients"], strict=True):
            assert (gradient - whole).norm() < 1e-5 * whole.norm()
        assert torch.equal(mine["gradients"][-1], found[0]["gradients"][-1])
        assert mine["meshes"] == ["[[0, 1], [2, 3]]"], "a row for each machine"
        assert 0.49 < mine["held"] < 0.56, "half of the denoiser, and what a last recomputation leaves whole"


def test_a_run_in_two_parts_ends_with_the_lora_of_one_process(folder: Path, tmp_path: Path) -> None:
    catalog = tiny_catalog(tmp_path / "catalog")
    alone = run_recipe(recipe_of(tmp_path, catalog, "train.batch_size=4", "train.steps=2", *hybrid_part.SHORT), catalog)
    (file,) = (folder / "run" / "lora").glob("*.safetensors")
    expected = load_file(alone.folder / "lora" / file.name)
    for name, weight in load_file(file).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-5)


def test_machines_that_share_nothing_are_refused_by_name(folder: Path) -> None:
    one_each, unequal = (folder / "refused-3").read_text(encoding="utf-8").splitlines()
    assert "train.sharding: each machine has one process, so nothing to share out there; use full" in one_each
    assert "train.sharding: machines have different numbers of processes, such as 1 and 2; start as many" in unequal


def test_a_forecast_shares_the_denoiser_out() -> None:
    """A part of every block, two whole ones, and what is in none."""
    assert held(1000, 200, 50, 4) == 250 + 2 * 200 + 50
    pipe = next(family for family in FAMILIES if family.name == "FLUX.1").pipe(torch.float32)
    sizes = [frozen_bytes(block) for block in blocks(pipe.transformer)]
    whole = frozen_bytes(pipe.transformer)
    memory = Memory(weights={"transformer": whole, "vae": 7}, lora=0, gradient=0, optimizer=0, activations=0)
    unused: Any = None
    found = Forecast("cpu", 1, calls=unused, seconds=unused, memory=memory)
    trainer: Any = SimpleNamespace(sampler=SimpleNamespace(pipe=pipe))
    expected = held(sum(sizes), max(sizes), whole - sum(sizes), 2)
    assert len(sizes) == 2
    assert shared_out(found, trainer, 2).memory.weights == {"transformer": expected, "vae": 7}
