"""What is predicted without weights is what real ones take, and the recipes for full-size models fit their models."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, WIDTH, Family
from tiny import Redness, RednessConfig

from draft_core import Objective
from draft_core.lora import add_lora

ROOT = Path(__file__).parents[1]

# Small models of the same classes -> shapes of their embeddings, and what else their calls take.
EMBEDDINGS: dict[str, dict[str, tuple[int, ...]]] = {
    "Stable Diffusion XL": {
        "prompt_embeds": (16, 2 * WIDTH),
        "negative_prompt_embeds": (16, 2 * WIDTH),
        "pooled_prompt_embeds": (WIDTH,),
        "negative_pooled_prompt_embeds": (WIDTH,),
    },
    "Stable Diffusion 3": {
        "prompt_embeds": (24, 2 * WIDTH),
        "negative_prompt_embeds": (24, 2 * WIDTH),
        "pooled_prompt_embeds": (2 * WIDTH,),
        "negative_pooled_prompt_embeds": (2 * WIDTH,),
    },
    "FLUX.1": {"prompt_embeds": (16, WIDTH), "pooled_prompt_embeds": (WIDTH,)},
    "Wan 2.1, video": {"prompt_embeds": (16, WIDTH), "negative_prompt_embeds": (16, WIDTH)},
}
CALLS: dict[str, dict[str, Any]] = {
    "Stable Diffusion XL": {"guidance_scale": 4.0, "height": 32, "width": 32},
    "Stable Diffusion 3": {"guidance_scale": 4.0, "height": 32, "width": 32},
    "FLUX.1": {"guidance_scale": 3.5, "height": 32, "width": 32},
    "Wan 2.1, video": {"guidance_scale": 4.0, "height": 32, "width": 32, "num_frames": 5},
}


@pytest.fixture(scope="module")
def scale() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("scale")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def found(scale: Any, name: str, settings: Any, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """What an update of the small model allocates, with numbers on the CPU and without on the meta device."""
    pipe = family(name).pipe(dtype)
    for part in pipe.components:
        if "text_encoder" in part:
            setattr(pipe, part, None)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(device)
    with torch.device(device):
        add_lora(pipe, rank=4)
    generator = torch.Generator().manual_seed(0)
    call = {
        key: torch.randn(settings.batch, *shape, generator=generator).to(device, dtype)
        for key, shape in EMBEDDINGS[name].items()
    }
    with scale.without_numbers(pipe):
        return scale.activations(pipe, Objective({"red": Redness(RednessConfig())}), settings, {**call, **CALLS[name]})


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("Stable Diffusion XL", "plain"),
        ("Stable Diffusion 3", "selective"),
        ("FLUX.1", "blocks"),
        ("Wan 2.1, video", "lean"),
    ],
)
def test_an_update_without_numbers_takes_what_a_real_one_takes(scale: Any, name: str, way: str) -> None:
    settings = {
        "plain": scale.Settings(batch=2, k=2),
        "selective": scale.SELECTIVE,
        "lean": scale.LEAN,
        "blocks": scale.BLOCKS,
    }[way]
    real, without = (found(scale, name, settings, device) for device in ("cpu", "meta"))
    assert without.peak == pytest.approx(real.peak, rel=0.02)
    assert without.denoiser == pytest.approx(real.denoiser, rel=0.02)
    assert without.decoder == pytest.approx(real.decoder, rel=0.02)
