"""Given latents make the images of their seeds, in every family whose call takes latents."""

from __future__ import annotations

import pytest
import torch

from draft_core import DifferentiableSampler, StepPlan
from draft_core.errors import DraftError, SamplerError
from draft_core.search.starts import images_from, start_of
from tests.support.families import FAMILIES, Family

TAKES_NONE = "SD image to image"


def sampler_of(family: Family) -> DifferentiableSampler:
    if family.missing:
        pytest.skip(f"diffusers has no {family.missing[0]}")
    return DifferentiableSampler(family.pipe(), num_inference_steps=family.steps, **family.call(torch.float32))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name != TAKES_NONE], ids=lambda f: f.name)
def test_the_image_of_the_latents_is_that_of_the_seed(family: Family) -> None:
    sampler = sampler_of(family)
    plan, seeds = StepPlan(sampler.steps, frozenset()), [7, 8][: len(family.prompts or "two")]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        expected = sampler(family.prompts, plan=plan, generator=generators).images
        start = start_of(sampler, family.prompts, seeds)  # type: ignore[arg-type]
        found = sampler(family.prompts, plan=plan, generator=start.generators(), latents=start.latents).images
    assert torch.equal(found, expected)


def test_a_call_that_takes_no_latents_is_refused() -> None:
    family = next(family for family in FAMILIES if family.name == TAKES_NONE)
    with pytest.raises(
        SamplerError, match="its call takes no latents, so that its noise cannot be given; search among"
    ):
        start_of(sampler_of(family), family.prompts or (), [0, 1])


def test_latents_that_do_not_make_the_seeds_image_are_refused() -> None:
    sampler = sampler_of(FAMILIES[0])
    prepare = sampler.pipe.prepare_latents
    sampler.pipe.prepare_latents = lambda *args: prepare(*args) * (1.0 if args[-1] is None else 0.5)
    with pytest.raises(SamplerError, match="its call makes other images of the latents of a seed than of the seed"):
        start_of(sampler, FAMILIES[0].prompts or (), [0, 1])


def test_images_of_given_latents_come_in_batches_and_of_their_shape_alone() -> None:
    sampler = sampler_of(FAMILIES[0])
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    prompts, seeds = ["a cat", "a dog", "a hat"], [1, 2, 3]
    counted: list[int] = []
    images = images_from(sampler, prompts, seeds, latents, batch_size=2, progress=lambda done, _: counted.append(done))
    whole = images_from(sampler, prompts, seeds, latents, batch_size=3)
    torch.testing.assert_close(images, whole, atol=1e-5, rtol=0)
    assert counted == [2, 3]
    assert images.shape == (3, 3, 16, 16)
    plain = sampler.pipe(
        "a hat", latents=latents[2:], num_inference_steps=3, guidance_scale=4.0, output_type="pt"
    ).images
    torch.testing.assert_close(images[2:], plain, atol=1e-5, rtol=0)
    with pytest.raises(
        DraftError, match=r"latents: they are \(3, 4, 8, 4\), and StableDiffusionPipeline starts 3 such"
    ):
        images_from(sampler, prompts, seeds, latents[..., :4], batch_size=3)
