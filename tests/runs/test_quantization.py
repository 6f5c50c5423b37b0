"""Frozen weights in 4 and 8 bits: as plain diffusers loads them, with the gradients of their numbers, or refused."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes", reason="draft-core[quantization] is not installed")
pytest.importorskip("torchao", reason="draft-core[quantization] is not installed")

import bitsandbytes
import diffusers
import transformers
from diffusers.quantizers import PipelineQuantizationConfig
from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer
from safetensors.torch import load_file
from torchao.quantization import Int8WeightOnlyConfig

from draft_core import DifferentiableSampler, Draft
from draft_core.adapters.files import write_lora
from draft_core.adapters.lora import add_lora, trainable
from draft_core.cost.forecast import frozen_bytes
from draft_core.cost.meta_device import META, build_network, like_a_gpu, quantize, without_numbers
from draft_core.cost.peak_memory import MemoryMeter
from draft_core.cost.published import Network
from draft_core.errors import RecipeError
from draft_core.plan import StepPlan
from draft_core.recipe.load import load_recipe
from draft_core.recipe.schema import ModelConfig
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import read_run
from draft_core.runs.build import build_sampler
from draft_core.runs.loading import quantization
from draft_core.runs.run import run_recipe
from draft_core.sampling.call_traits import CallTraits
from tests.support.families import FAMILIES, WIDTH
from tests.support.runs import without_pages
from tests.support.tiny import GOOD

KINDS = ("int8", "nf4")
T5 = "text_encoder_2"
CALL = {"guidance_scale": 3.5, "height": 32, "width": 32}


@pytest.fixture(autouse=True)
def nf4_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers loads nf4 on a GPU alone, although bitsandbytes computes it on the CPU too: its refusal is lifted."""
    monkeypatch.setattr(quantization, "NEEDS_GPU", ())
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "update_device_map", lambda *_: {"": "cpu"})
    # Some CPUs have a kernel for drawing alone, which repacks the weights and passes no gradient.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def family(name: str) -> Any:
    return next(family for family in FAMILIES if family.name == name)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small FLUX.1, saved."""
    folder = tmp_path_factory.mktemp("flux")
    family("FLUX.1").pipe().save_pretrained(folder)
    return folder


def config_of(kind: str, library: Any, dtype: torch.dtype) -> Any:
    if kind == "int8":
        return library.TorchAoConfig(Int8WeightOnlyConfig())
    return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def plain(folder: Path, dtype: torch.dtype = torch.float32, **kinds: str) -> Any:
    """What diffusers itself makes of the same configs."""
    mapping = {
        name: config_of(kind, transformers if "text" in name else diffusers, dtype) for name, kind in kinds.items()
    }
    config = PipelineQuantizationConfig(quant_mapping=mapping) if mapping else None
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype, quantization_config=config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_by(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images: torch.Tensor = pipe("a cat", num_inference_steps=2, generator=generator, output_type="pt", **CALL).images
    return images


def sampler_of(catalog: Catalog, folder: Path, kinds: Any, **fields: Any) -> DifferentiableSampler:
    model = ModelConfig(pretrained=str(folder), num_inference_steps=2, quantization=kinds, call=CALL, **fields)
    return build_sampler(model, catalog=catalog)


def drawn(sampler: DifferentiableSampler) -> torch.Tensor:
    with torch.no_grad():
        generator = [torch.Generator().manual_seed(1)]
        images: torch.Tensor = sampler(["a cat"], plan=StepPlan(2, frozenset()), generator=generator).images
    return images


def with_numbers(pipe: Any) -> Any:
    """The pipeline with a LoRA that changes its images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_lora(pipe, rank=4)
        for weight in trainable(pipe):
            torch.nn.init.normal_(weight, std=0.1)
    return pipe


@pytest.mark.parametrize("kinds", ["int8", {"transformer": "nf4", T5: "nf4"}, {"transformer": "nf4", T5: "int8"}])
def test_samples_are_those_of_plain_diffusers(catalog: Catalog, flux: Path, kinds: Any) -> None:
    named = {"transformer": kinds} if isinstance(kinds, str) else kinds
    images = drawn(sampler_of(catalog, flux, kinds))
    assert torch.equal(images, drawn_by(plain(flux, **named)))
    assert not torch.equal(images, drawn_by(plain(flux))), "a field that is ignored would pass"


def dequantized(weight: Any) -> torch.Tensor:
    if hasattr(weight, "quant_state"):
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.dequantize()


def gradient(pipe: Any, how: Any = False) -> list[torch.Tensor]:
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, gradient_checkpointing=how, **CALL)
    for weight in trainable(pipe):
        weight.grad = None
    plan = StepPlan(2, frozenset({0, 1}))
    rollout = sampler(["a cat"], plan=plan, generator=[torch.Generator().manual_seed(1)])
    rollout.images.square().mean().backward()
    return [weight.grad for weight in trainable(pipe)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_quantised_numbers_in_single_precision(
    catalog: Catalog, flux: Path, kind: str
) -> None:
    pipe = sampler_of(catalog, flux, {"transformer": kind, T5: kind}).pipe
    full = plain(flux)
    whole = gradient(with_numbers(copy.deepcopy(full)))
    for part in ("transformer", T5):
        network = getattr(full, part)
        for name, layer in getattr(pipe, part).named_modules():
            if isinstance(layer, torch.nn.Linear) and type(layer.weight) is not torch.nn.Parameter:
                network.get_submodule(name).weight.data = dequantized(layer.weight)
    expected, found = gradient(with_numbers(full)), gradient(with_numbers(pipe))
    assert {weight.dtype for weight in trainable(pipe)} == {torch.float32}
    norm = torch.cat([one.flatten() for one in expected]).norm()

    def off(gradients: list[torch.Tensor]) -> float:
        return float(torch.cat([(a - b).flatten() for a, b in zip(gradients, expected, strict=True)]).norm() / norm)

    assert off(found) < 1e-5
    assert off(whole) > 1e-3, "the weights before they were quantised would pass"
    for how in (True, "selective", "blocks"):
        assert off(gradient(pipe, how)) < 1e-5, how


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_that_was_trained_over_it_loads_in_plain_diffusers(
    catalog: Catalog, flux: Path, tmp_path: Path, kind: str
) -> None:
    sampler = sampler_of(catalog, flux, {"transformer": kind, T5: kind}, remember_prompts=True)
    write_lora(with_numbers(sampler.pipe), tmp_path / "lora")
    pipe = plain(flux, transformer=kind, **{T5: kind})
    before = drawn_by(pipe)
    pipe.load_lora_weights(tmp_path / "lora")
    images = drawn_by(pipe)
    torch.testing.assert_close(drawn(sampler), images, rtol=0, atol=1e-5)
    assert (images - before).abs().max() > 1e-3
    whole = plain(flux)
    before = drawn_by(whole)
    whole.load_lora_weights(tmp_path / "lora")
    assert (drawn_by(whole) - before).abs().max() > 1e-3, "it is for the model that is not quantised, too"


def test_a_run_says_it_and_goes_on_exactly(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)

    def trained(name: str, *overrides: str, **how: Any) -> dict[str, torch.Tensor]:
        data = {
            **GOOD,
            "model": {
                "pretrained": "tiny",
                "dtype": "bfloat16",
                "num_inference_steps": 2,
                "quantization": {"unet": "int8", "text_encoder": "int8"},
            },
            "method": {"kind": "draft-k"},
            "train": {"steps": 4, "batch_size": 2},
            "evaluation": {"count": 1, "images_per_prompt": 1, "every": 2, "scales": []},
            "checkpoint": {"every": 2},
            "device": "cpu",
            "output": str(tmp_path / name),
        }
        result = run_recipe(load_recipe(data, overrides, catalog=catalog), catalog, **how)
        (file,) = (result.folder / "lora").glob("*.safetensors")
        return load_file(file)

    whole = trained("whole")
    trained("parts", "train.steps=2")
    with pytest.raises(RecipeError, match=r"model\.quantization"):
        trained("parts", "model.quantization=int8", resume=True)
    parts = trained("parts", resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    facts = read_run(tmp_path / "parts").facts
    assert facts.source == {"quantization": {"unet": "int8", "text_encoder": "int8"}}
    assert "torchao" in facts.versions
    assert "bitsandbytes" not in facts.versions


# What it takes, predicted without numbers

SMALL = {
    "FLUX.1": ("transformer", T5),
    "Wan 2.1, video": ("transformer", "text_encoder"),
    "Stable Diffusion XL": ("unet", "text_encoder_2"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SMALL)
def test_networks_without_numbers_take_what_the_loaded_ones_take(name: str, kind: str, tmp_path: Path) -> None:
    family(name).pipe().save_pretrained(tmp_path)
    loaded = plain(tmp_path, torch.bfloat16, **dict.fromkeys(SMALL[name], kind))
    for part in SMALL[name]:
        network = getattr(loaded, part).requires_grad_(False)
        of_class = network.config if isinstance(network.config, dict) else network.config.to_diff_dict()
        config = {
            field: value for field, value in of_class.items() if field != "quantization_config" and field[0] != "_"
        }
        without = build_network(Network(type(network).__name__, config, 0.0), torch.bfloat16, kind)
        assert frozen_bytes(without) == frozen_bytes(network), part
        full = build_network(Network(type(network).__name__, config, 0.0), torch.bfloat16)
        assert frozen_bytes(full) > 1.1 * frozen_bytes(network)


def without_weights(folder: Path, kind: str) -> Any:
    pipe = plain(folder)
    for part in ("transformer", "vae"):
        getattr(pipe, part).to(META)
    quantize(pipe.transformer, kind)
    return pipe


def peak(pipe: Any, how: Any) -> int:
    """Bytes that an update allocates beside weights, LoRA and its gradient."""
    device = next(pipe.vae.parameters()).device
    pipe.text_encoder = pipe.text_encoder_2 = None
    with torch.device(device):
        add_lora(pipe, rank=4)
    for weight in trainable(pipe):
        weight.grad = torch.zeros_like(weight)
    given = {"prompt_embeds": torch.zeros(1, 16, WIDTH), "pooled_prompt_embeds": torch.zeros(1, WIDTH)}
    given = {name: value.to(device) for name, value in given.items()}
    sampler = DifferentiableSampler(pipe, num_inference_steps=1, gradient_checkpointing=how, **CALL, **given)
    sampler.traits = CallTraits(1)
    with without_numbers(pipe), like_a_gpu(), MemoryMeter() as meter:
        rollout = sampler(plan=Draft().plan(1, Random(0)), generator=torch.Generator().manual_seed(0))
        rollout.images.mean().backward()
    return meter.peak


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_without_numbers_takes_what_a_real_one_takes(flux: Path, kind: str) -> None:
    for how in (False, "blocks"):
        real = peak(plain(flux, transformer=kind), how)
        assert peak(without_weights(flux, kind), how) == pytest.approx(real, rel=0.02), how
        if kind == "int8" and not how:  # it keeps each layer's weight as it is multiplied
            assert peak(without_weights(flux, "nf4"), how) < 0.95 * real, "the other kind's figure would do"
