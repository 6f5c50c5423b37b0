"""A tiny decoder in training: as a pipeline whose `vae` it is, refused where it cannot be, and forecast."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from draft_core import DifferentiableSampler, DraftK, Objective, evaluate
from draft_core.adapters.lora import trainable
from draft_core.cost.card import Update, predict
from draft_core.cost.forecast import forecast
from draft_core.cost.meta_device import build_network
from draft_core.cost.peak_memory import peak_memory
from draft_core.cost.published import TINY_DECODERS, Model, Network
from draft_core.errors import DraftError, RecipeError, SamplerError
from draft_core.recipe.load import load_recipe
from draft_core.recipe.resolve import resolve_recipe
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import build, build_sampler
from draft_core.runs.provenance import drawn_otherwise
from draft_core.sampling.decoders.tiny import TinyDecoder
from tests.support.drive import call_of, plain, seeded
from tests.support.families import FAMILIES
from tests.support.tiny import GOOD, tiny_catalog, tiny_pipe, with_lora

NAMES = ("Stable Diffusion 1.x", "Stable Diffusion XL", "Stable Diffusion 3", "FLUX.1", "FLUX.1, modular")
BY_NAME = {family.name: family for family in FAMILIES}


def tiny(own: Any, **config: Any) -> Any:
    """A seeded AutoencoderTiny for the latents of another decoder."""
    blocks = len(own.config.block_out_channels)
    shape = {
        "latent_channels": own.config.latent_channels,
        "encoder_block_out_channels": (4,) * blocks,
        "num_encoder_blocks": (1,) * blocks,
        "decoder_block_out_channels": (4,) * blocks,
        "num_decoder_blocks": (1,) * blocks,
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return diffusers.AutoencoderTiny(**{**shape, **config}).requires_grad_(False).eval()


def sampler_of(name: str, pipe: Any, **more: Any) -> DifferentiableSampler:
    family = BY_NAME[name]
    return DifferentiableSampler(pipe, num_inference_steps=family.steps, **family.call(torch.float32), **more)


def drawn(name: str, pipe: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and the gradient of the LoRA of something like a reward."""
    sampler, prompts = sampler_of(name, pipe, **more), BY_NAME[name].prompts
    given = None if prompts is None else list(prompts)
    images = sampler(given, plan=DraftK(k=1).plan(sampler.steps, Random(0)), generator=seeded()).images
    slope = torch.linspace(-1, 1, images.numel()).view_as(images)
    gradient = torch.autograd.grad((images.square() * slope).sum(), list(trainable(pipe)))
    return images.detach(), torch.cat([part.flatten() for part in gradient])


def exchanged(name: str, pipe: Any, decoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of a pipeline whose `vae` is the tiny one: diffusers scales the latents for it then."""
    if hasattr(pipe, "update_components"):
        pipe.update_components(vae=decoder)
    else:
        pipe.vae = decoder
    with torch.no_grad():
        alone = plain(pipe, call_of(BY_NAME[name]))
    images, gradient = drawn(name, pipe)
    torch.testing.assert_close(images, alone)
    return images, gradient


@pytest.mark.parametrize("name", NAMES)
def test_images_and_gradients_are_those_of_a_pipeline_with_that_vae(name: str) -> None:
    pipe = with_lora(BY_NAME[name].pipe(), std=0.1)
    own = {"scaling_factor": 0.5, "shift_factor": 0.2} if name == "FLUX.1, modular" else {}  # published: 1 and 0
    decoder = tiny(pipe.vae, **own)
    images, gradient = drawn(name, pipe, decoder=decoder)
    expected, wanted = exchanged(name, pipe, decoder)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_a_forgotten_shift_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = with_lora(BY_NAME["FLUX.1"].pipe(), std=0.1)
    decoder = tiny(pipe.vae)
    monkeypatch.setattr(TinyDecoder, "fit", lambda self, sampler: vars(self).update(shift=0.0, scale=2.5))
    images, _ = drawn("FLUX.1", pipe, decoder=decoder)
    expected, _ = exchanged("FLUX.1", pipe, decoder)
    assert (images - expected).abs().max() > 1e-3


def test_a_pipeline_that_leaves_the_shift_of_its_config_alone_is_not_given_it() -> None:
    pipe = with_lora(BY_NAME["Stable Diffusion 1.x"].pipe(), std=0.1)
    pipe.vae.register_to_config(shift_factor=0.3)
    sampler = sampler_of("Stable Diffusion 1.x", pipe, decoder=tiny(pipe.vae))
    assert sampler.steps
    assert sampler.decoder is not None
    assert sampler.decoder.shift == 0


@pytest.mark.parametrize("decode", ["selective", "blocks", "checkpointed", "sliced"])
def test_every_way_to_decode_gives_the_same_gradient(decode: str) -> None:
    pipe = with_lora(BY_NAME["Stable Diffusion 1.x"].pipe(), std=0.1)
    decoder = tiny(pipe.vae)
    images, gradient = drawn("Stable Diffusion 1.x", pipe, decoder=decoder, decode=decode)
    whole, wanted = drawn("Stable Diffusion 1.x", pipe, decoder=tiny(pipe.vae))
    torch.testing.assert_close(images, whole)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_evaluations_are_decoded_by_the_models_own_decoder() -> None:
    pipe = BY_NAME["Stable Diffusion 1.x"].pipe()
    own, other = (
        evaluate(sampler_of("Stable Diffusion 1.x", pipe, decoder=decoder), Objective({}), ["a cat"], [0]).images
        for decoder in (None, tiny(pipe.vae))
    )
    torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_what_does_not_fit_is_refused_by_name() -> None:
    sd = BY_NAME["Stable Diffusion 1.x"].pipe()
    for decoder, words in (
        (tiny(sd.vae, latent_channels=16), "16 channels of latents, and the model's own decoder 4"),
        (tiny(sd.vae, upsampling_scaling_factor=4), "enlarges 4 times, and the model's own decoder 2 times"),
        (sd.vae, "it is a AutoencoderKL"),
    ):
        with pytest.raises(SamplerError, match=words):
            sampler_of("Stable Diffusion 1.x", sd, decoder=decoder)
    wan = BY_NAME["Wan 2.1, video"].pipe()
    with pytest.raises(SamplerError, match="decodes by AutoencoderKLWan"):
        sampler_of("Wan 2.1, video", wan, decoder=tiny(sd.vae))
    xl = BY_NAME["Stable Diffusion XL"].pipe()
    xl.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 1.0, 2.0])  # Playground's way
    with pytest.raises(SamplerError, match="not its latents divided by the scaling_factor"):
        sampler_of("Stable Diffusion XL", xl, decoder=tiny(xl.vae)).steps  # noqa: B018


# Recipes


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return tiny_catalog(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny(tiny_pipe().vae).save_pretrained(tmp_path / "decoder")
    return tmp_path / "decoder"


def fields(folder: Path, output: Path, **more: Any) -> dict[str, Any]:
    model = {**GOOD["model"], "decoder": str(folder)}
    return {**GOOD, "model": model, "train": {"steps": 1, "batch_size": 1}, "output": str(output), **more}


def digest_of_decoder(recipe: Any, catalog: Catalog) -> tuple[str, ...]:
    lists = resolve_recipe(recipe, catalog, versions={}, processes=1).prompt_lists
    return tuple(lists["model.decoder (digest)"])


def test_a_run_says_what_it_saw_and_knows_the_weights_again(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    recipe = load_recipe(fields(folder, tmp_path / "run"), catalog=catalog)
    sampler = build_sampler(recipe.model, catalog=catalog)
    assert drawn_otherwise(recipe, sampler, sampler) == (
        f"evaluations are drawn with the model's own decoder ({folder} in training)"
    )
    digests = []
    for shift in (0, 1):
        with torch.no_grad():
            decoder = diffusers.AutoencoderTiny.from_pretrained(folder)
            next(iter(decoder.decoder.parameters())).add_(shift)
            decoder.save_pretrained(folder)
        digests.append(digest_of_decoder(recipe, catalog))
    decoder.register_to_config(scaling_factor=3.0)
    decoder.save_config(folder)
    digests.append(digest_of_decoder(recipe, catalog))
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "nowhere is neither a folder nor a hub name"),
        ("./nowhere", "there is no"),
        ("empty", "holds no config.json"),
    ],
)
def test_a_recipe_that_names_no_decoder_is_refused(name: str, words: str, catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = str(tmp_path / "empty") if name == "empty" else name
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe({**GOOD, "model": {**GOOD["model"], "decoder": given}}, catalog=catalog)
    assert "model.decoder" in str(caught.value)


def test_a_wrong_decoder_is_refused_before_the_model_is_loaded(
    folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("draft_core.runs.build.load_pipeline", loaded)
    tiny_pipe().vae.save_pretrained(tmp_path / "full")
    tiny(tiny_pipe().vae, latent_channels=16).save_pretrained(tmp_path / "wide")
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    last = max(name for name in weights if name.startswith("decoder"))
    for name, spoilt in (
        ("part", {k: w for k, w in weights.items() if k != last}),
        ("nan", {**weights, last: weights[last] * math.nan}),
    ):
        shutil.copytree(folder, tmp_path / name)
        save_file(spoilt, tmp_path / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    for name, words in (
        ("full", "is AutoencoderKL"),
        ("wide", "16 channels of latents"),
        ("part", f"lack 1 tensors, first {last}"),
        ("nan", "are not finite in torch.float32"),
    ):
        model = load_recipe(fields(tmp_path / name, tmp_path / "run"), catalog=catalog).model
        with pytest.raises(DraftError, match=words):
            build_sampler(model, catalog=catalog)


def test_the_forecast_counts_it(folder: Path, catalog: Catalog, tmp_path: Path) -> None:
    peaks = {}
    for name, model in (("own", {"decoder": None}), ("tiny", {})):
        recipe = load_recipe(fields(folder, tmp_path / "run", method={"kind": "draft-k", "k": 1}), catalog=catalog)
        trainer = build(recipe.with_(catalog, model=model) if model else recipe, catalog=catalog)
        memory = forecast(trainer).memory
        real = peak_memory(partial(next, iter(trainer)))
        assert memory.activations + memory.gradient + memory.optimizer == pytest.approx(real, rel=0.3)
        peaks[name] = memory
    assert peaks["tiny"].activations < peaks["own"].activations
    weights = diffusers.AutoencoderTiny.from_pretrained(folder).parameters()
    assert peaks["tiny"].weights["decoder of training"] == sum(weight.nbytes for weight in weights)


def test_a_card_that_is_not_here_needs_less_with_it() -> None:
    for network in TINY_DECODERS.values():
        built = build_network(network, torch.float32)
        assert sum(weight.numel() for weight in built.parameters()) / 1e6 == pytest.approx(network.parameters, abs=0.01)
    own = {"block_out_channels": (32, 32), "latent_channels": 4, "sample_size": 64, "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    unet = {
        "sample_size": 16,
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    model = Model(
        hub="none/here",
        pipeline="StableDiffusionPipeline",
        networks={
            "unet": Network("UNet2DConditionModel", unet, 1.0),
            "vae": Network("AutoencoderKL", {**own, **blocks}, 1.0),
        },
        scheduler=("EulerDiscreteScheduler", {"steps_offset": 1}),
        embeddings={"prompt_embeds": (8, 32), "negative_prompt_embeds": (8, 32)},
        without=("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"),
    )
    small = {"decoder_block_out_channels": (4, 4), "num_decoder_blocks": (1, 1)}
    small |= {"encoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 1)}
    whole, less = (
        predict(Update(model, call={"height": 32, "width": 32}, decoder=decoder)).memory
        for decoder in (None, Network("AutoencoderTiny", small, 0.1))
    )
    assert less.activations < whole.activations
    assert less.weights.keys() - whole.weights.keys() == {"decoder of training"}
