"""Makes the training program importable, and keeps torch to one thread as the machine may be shared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from draft_core import load_catalog, load_pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def draw() -> Callable[[int, int], tuple[list[str], torch.Tensor]]:
    """Makes the first prompts of emoji-heldout, so many, and an image of each, (N, 3, 64, 64), in so many steps."""

    def drawn(count: int, steps: int) -> tuple[list[str], torch.Tensor]:
        prompts = load_catalog().prompt_lists()["emoji-heldout"].read_text().splitlines()[:count]
        pipe: StableDiffusionPipeline = load_pipeline("emoji")
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(0) for _ in prompts]
        call = {"num_inference_steps": steps, "guidance_scale": 4.0, "generator": generators, "output_type": "pt"}
        return prompts, pipe(prompts, **call).images

    return drawn
