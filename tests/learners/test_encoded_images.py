"""Images as latents, against what the pipeline decodes and what diffusers' own image-to-image pipelines encode."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from draft_core import DifferentiableSampler
from draft_core.errors import SamplerError
from draft_core.learners.latents.encode import ImageEncoder
from draft_core.plan import StepPlan
from draft_core.sampling.seams import replaced
from tests.support.chains import Mixture, Points, ddim, points
from tests.support.drive import sampler_of
from tests.support.families import FAMILIES
from tests.support.tiny import byte_tokenizer, tiny_pipe

STILL = (
    "Stable Diffusion 1.x",
    "Stable Diffusion XL",
    "Latent consistency",
    "Stable Diffusion 3",
    "FLUX.2 klein",
    "PixArt-Sigma",
    "Sana",
    "Z-Image",
    "FLUX.1, modular",
)


def sampled(name: str, dtype: torch.dtype = torch.float32) -> Any:
    family = next(family for family in FAMILIES if family.name == name)
    if family.missing:
        pytest.skip(f"no {family.missing}")
    return sampler_of(family, family.pipe(dtype), dtype)


@pytest.mark.parametrize("name", STILL)
def test_what_a_pipeline_decodes_leads_back_to_its_latents(name: str) -> None:
    sampler, seen = sampled(name), list[torch.Tensor]()

    def decode(original: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(latents)
        return original(latents, *args, **kwargs)

    encoder = ImageEncoder(sampler)
    with torch.no_grad(), replaced(sampler.pipe.vae, "decode", decode):
        plan = StepPlan(sampler.steps, frozenset())
        rollout = sampler(["a cat"], plan=plan, generator=[torch.Generator().manual_seed(3)])
    (decoded,) = seen
    assert encoder.size == rollout.images.shape[-2:]
    torch.testing.assert_close(encoder.input.undone(decoded), rollout.latents, rtol=1e-4, atol=1e-4)
    assert encoder(rollout.images).shape == rollout.latents.shape


def test_latents_are_those_of_image_to_image(tmp_path: Any) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    to_image = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    pipe.scheduler.alphas_cumprod[0] = 1.0  # a level without noise, and that pipeline adds none
    pipe.vae.quant_conv.weight.data[4:] = 0
    pipe.vae.quant_conv.bias.data[4:] = -30.0  # nor does its posterior
    expected = to_image.prepare_latents(
        to_image.image_processor.preprocess(image), torch.tensor([0]), 1, 1, torch.float32, "cpu", torch.Generator()
    )
    found = ImageEncoder(DifferentiableSampler(pipe, num_inference_steps=2))(image)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_packed_latents_are_those_of_flux_image_to_image() -> None:
    """Shift, scale and packing of two by two, as diffusers' own pipeline makes them."""
    sampler = sampled("FLUX.1, modular")
    vae = sampler.pipe.vae
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = (vae.encode(2 * image - 1).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    packed = diffusers.FluxImg2ImgPipeline._pack_latents(values, *values.shape)
    torch.testing.assert_close(ImageEncoder(sampler)(image), packed, rtol=1e-4, atol=1e-5)


def test_latents_are_told_apart_in_bfloat16() -> None:
    assert torch.equal(
        ImageEncoder(sampled("FLUX.2 klein", torch.bfloat16)).input.places,
        ImageEncoder(sampled("FLUX.2 klein")).input.places,
    )


def test_what_cannot_be_encoded_is_refused_by_name() -> None:
    with pytest.raises(SamplerError, match=r"WanPipeline: it makes videos, and pairs are of images; leave out method"):
        ImageEncoder(sampled("Wan 2.1, video"))
    with pytest.raises(SamplerError, match=r"Points: its images cannot be encoded: it has no `vae` with an encoder"):
        ImageEncoder(points(Mixture(torch.zeros(1, 2), 1.0, ddim().alphas_cumprod), 2, 2))


class Bounded(Points):
    """Points that are bounded before a decoder gets them."""

    vae = SimpleNamespace(encode=lambda images: images, decode=lambda latents: latents)

    def __call__(
        self, prompt: Any = None, num_inference_steps: int = 2, generator: Any = None, output_type: str = "pt", **_: Any
    ) -> Any:
        (latents,) = super().__call__(prompt, num_inference_steps, generator=generator)
        return (self.vae.decode(latents.tanh()),)


def test_a_decoder_that_gets_something_else_is_refused() -> None:
    pipe = Bounded(Mixture(torch.zeros(1, 2), 1.0, ddim().alphas_cumprod), ddim(), 2)
    with pytest.raises(SamplerError, match=r"Bounded: what its decoder gets is not its latents scaled, shifted and"):
        ImageEncoder(DifferentiableSampler(pipe, num_inference_steps=2))
