"""What is predicted without weights is what real ones take, and the recipes for full-size models fit their models."""

from __future__ import annotations

import importlib
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from draft_core import Objective
from draft_core.adapters.lora import add_lora
from draft_core.cost.forecast import leaving_encoders
from draft_core.cost.meta_device import build_network, like_a_gpu, tiles_once, without_numbers
from draft_core.cost.peak_memory import MemoryMeter
from draft_core.cost.published import REWARD_ENCODERS
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.sampling.decoders.tiles import decoded_by_tiles
from tests.support.families import FAMILIES, WIDTH, Family, wan_vae
from tests.support.thorough import some
from tests.support.tiny import Redness, RednessConfig

ROOT = Path(__file__).parents[2]

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
    pytest.importorskip("draft_reward_hpsv2", reason="draft-reward-hpsv2 is missing: the reward whose size is counted")
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
    with without_numbers(pipe):
        return scale.activations(pipe, Objective({"red": Redness(RednessConfig())}), settings, {**call, **CALLS[name]})


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("Stable Diffusion XL", "plain"),
        ("Stable Diffusion 3", "selective"),
        ("FLUX.1", "blocks"),
        ("Wan 2.1, video", "whole call"),
        *some({"tiles": ("Wan 2.1, video", "tiles")}).values(),
    ],
)
def test_an_update_without_numbers_takes_what_a_real_one_takes(
    scale: Any, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "plain": scale.Settings(batch=2, k=2),
        "selective": scale.SELECTIVE,
        "whole call": scale.RECOMPUTED,
        "blocks": scale.BLOCKS,
        "tiles": replace(scale.TILES, tiles=32, frames=1),
    }[way]
    monkeypatch.setitem(CALLS, name, {**CALLS[name], **({"height": 64, "width": 64} if way == "tiles" else {})})
    real, without = (found(scale, name, settings, device) for device in ("cpu", "meta"))
    assert without.peak == pytest.approx(real.peak, rel=0.02)
    assert without.denoiser == pytest.approx(real.denoiser, rel=0.02)
    assert without.decoder == pytest.approx(real.decoder, rel=0.02)


def test_of_the_tiles_of_one_shape_one_is_decoded() -> None:
    """Six tiles of four shapes and two calls each, once without a graph and once with it."""

    def counted(decode: str | None) -> tuple[int, int]:
        calls: list[int] = []
        vae = wan_vae().to("meta").requires_grad_(False)
        vae.enable_tiling(32, 32, 24, 24)
        vae.decoder.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
        latents = torch.empty(1, 4, 2, 8, 4, device="meta", requires_grad=True)
        with like_a_gpu(), tiles_once(vae, decode), MemoryMeter() as meter:
            decoded_by_tiles(vae, vae.decode, latents).sample.sum().backward()
        assert latents.grad is not None
        return len(calls), meter.peak

    (few, with_one), (all_calls, with_all) = counted("tiles"), counted(None)
    assert (few, all_calls) == (2 * 2 * 4, 2 * 2 * 6)
    assert with_one == pytest.approx(with_all, rel=0.01)


def test_attention_is_counted_as_fused_kernels_keep_it(scale: Any) -> None:
    def kept(fused: bool) -> int:
        query, key, value = (torch.zeros(1, 2, 512, 8, device="meta", requires_grad=True) for _ in range(3))
        with nullcontext() if not fused else like_a_gpu(), MemoryMeter() as meter:
            output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            assert output.shape == query.shape
            return meter.live

    assert kept(fused=True) == (2 * 512 * 8 + 2 * 512) * 4  # the output, and a number for each row
    assert kept(fused=False) > 2 * 512 * 512 * 4, "the S x S matrix, without which there is nothing to put right"


def test_the_networks_have_as_many_parameters_as_the_published_ones(scale: Any) -> None:
    networks = {str(network): network for model in scale.MODELS.values() for network in model.networks.values()}
    networks |= {str(network): network for network, _ in REWARD_ENCODERS.values()}
    assert len(networks) == 22
    for network in networks.values():
        built = sum(parameter.numel() for parameter in build_network(network, torch.bfloat16).parameters())
        assert built / 1e6 == pytest.approx(network.parameters, rel=1e-4), network.cls


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_text_encoders_leave_as_long_as_the_pipeline_knows_its_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = family(name).pipe()
    parts = {part: module for part, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
    encoders = {part for part in parts if part.startswith("text_encoder")}
    on_cpu: set[int] = set()
    device = property(lambda self: torch.device("cpu" if id(self) in on_cpu else "cuda"))  # there need not be one
    for cls in {type(module) for module in parts.values()}:
        monkeypatch.setattr(cls, "device", device)
    leaving = leaving_encoders(parts)
    on_cpu.update(id(parts[part]) for part in leaving)
    assert pipe._execution_device.type == "cuda"
    on_cpu.update(id(parts[part]) for part in encoders)
    assert (pipe._execution_device.type == "cuda") is (set(leaving) == encoders), "more could leave"
    monkeypatch.setattr(diffusers, "__version__", "0.39.0")
    assert leaving_encoders(parts) == sorted(encoders)[1:]


def test_a_prediction_adds_up(scale: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(scale, "measured", lambda *_: scale.Activations(0, 0, 10 * gib))
    encoders = {"text_encoder": 1 * gib, "text_encoder_2": 30 * gib}
    monkeypatch.setattr(scale, "weights", lambda *_: ((16 * gib, gib, 0), {"vae": gib, **encoders}, gib // 16, 2 * gib))
    alone, node = (scale.predict("FLUX.1-dev", scale.RECOMPUTED, processes=count) for count in (1, 8))
    assert alone.weights == {"denoiser": 16 * gib, "vae": gib, "reward": 2 * gib}
    assert node.weights["denoiser"] == (16 / 8 + 2) * gib, "an eighth, and two blocks that are gathered"
    assert alone.total(3) == pytest.approx(1 + 19 + 1 + 3 * 1.05 * 10)
    assert alone.total(1) == pytest.approx(1 + 50 + 1), "the whole pipeline is on the device before an update"
    assert (alone.most(53), alone.most(51)) == (3, 0)


def test_the_recipes_say_what_the_page_predicts(scale: Any) -> None:
    page = (ROOT / "docs" / "measurements" / "scale.md").read_text()
    rows = {
        "sdxl": "SDXL, 1024 x 1024 | blocks",
        "sd3.5-medium": "SD3.5-medium, 1024 x 1024 | blocks",
        "flux": "FLUX.1-dev, 1024 x 1024 | blocks",
        "wan": "Wan 2.1 1.3B, 480 x 832 x 9 | blocks, sliced",
    }
    for name, row in rows.items():
        recipe = (ROOT / "recipes" / f"{name}.yaml").read_text()
        (cells,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", page, flags=re.MULTILINE)
        total = float(re.findall(r"\(([\d.]+)\)", cells)[1])  # on 80 GB
        header = " ".join(recipe.partition("\nmodel:")[0].replace("#", " ").split())
        assert f"{total:.0f} GiB are predicted" in header, name
        model = parse_yaml(recipe)["model"]
        settings = scale.WAYS[row.partition(" | ")[2]]
        assert (model["gradient_checkpointing"], model["decode"]) == (settings.checkpointing, settings.decode)
        assert (model["lora"]["rank"], getattr(torch, model["dtype"])) == (scale.RANK, scale.DTYPE)
