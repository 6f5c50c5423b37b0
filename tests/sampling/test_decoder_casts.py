"""A pipeline that casts its decoder up while it decodes: samples as it gives them, gradients, every way to decode."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftK
from draft_core.adapters.lora import trainable
from draft_core.errors import SamplerError
from tests.support.drive import plain, seeded
from tests.support.families import FAMILIES, PROMPTS
from tests.support.tiny import with_lora

STEPS = 2
SDXL = next(family for family in FAMILIES if family.name == "Stable Diffusion XL")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Diffusers' own `upcast_vae` is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*upcast_vae.*")
        yield


def pipeline(dtype: torch.dtype) -> Any:
    """With a LoRA, its frozen weights in `dtype`."""
    return with_lora(SDXL.pipe(dtype))


def rollout(pipe: Any, dtype: torch.dtype, decode: Any = "whole") -> Any:
    sampler = DifferentiableSampler(pipe, num_inference_steps=STEPS, decode=decode, **SDXL.call(dtype))
    return sampler(list(PROMPTS), plan=DraftK(k=1).plan(sampler.steps, Random(0)), generator=seeded())


def gradient(pipe: Any, images: torch.Tensor) -> torch.Tensor:
    """Of a loss times 65536, as training in float16 scales it."""
    slope = torch.linspace(-1, 1, images.numel()).view_as(images)
    grads = torch.autograd.grad((images.float().square() * slope).mean() * 65536, list(trainable(pipe)))
    return torch.cat([grad.flatten() for grad in grads])


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    """The gradient in float32, where nothing is cast."""
    pipe = pipeline(torch.float32)
    return gradient(pipe, rollout(pipe, torch.float32).images)


@pytest.mark.parametrize("decode", ["whole", "selective", "blocks", "checkpointed", "sliced"])
def test_sdxl_in_float16_has_its_own_images_and_the_gradient_of_float32(decode: str, exact: torch.Tensor) -> None:
    pipe = pipeline(torch.float16)
    assert pipe.vae.config.force_upcast
    found = rollout(pipe, torch.float16, decode)
    assert {weight.dtype for weight in pipe.vae.parameters()} == {torch.float16}, "as the call left them"
    assert torch.nn.functional.cosine_similarity(gradient(pipe, found.images), exact, dim=0) > 0.98
    arguments = {**SDXL.call(torch.float16), "num_inference_steps": STEPS, "generator": seeded(), "output_type": "pt"}
    expected = plain(pipe, {"prompt": list(PROMPTS), **arguments})
    torch.testing.assert_close(found.samples.detach(), expected, rtol=0, atol=0 if decode != "sliced" else 1e-6)


def test_graphs_of_two_calls_outlive_the_casts_between_them(exact: torch.Tensor) -> None:
    pipe = pipeline(torch.float16)
    first, second = rollout(pipe, torch.float16), rollout(pipe, torch.float16)
    assert torch.equal(gradient(pipe, first.images), gradient(pipe, second.images))


def test_a_decoder_that_is_trained_and_cast_is_refused() -> None:
    pipe = pipeline(torch.float16)
    pipe.vae.requires_grad_(True)
    with pytest.raises(
        SamplerError, match=r"AutoencoderKL: its call casts the decoder .* give it that type beforehand"
    ):
        rollout(pipe, torch.float16)
