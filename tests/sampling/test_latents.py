"""Runs that start from given latents: the plain call's images, gradients against differences, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from draft_core import DifferentiableSampler, DraftLV, StepPlan
from draft_core.errors import SamplerError
from draft_core.plan import Renoising
from tests.support.families import FAMILIES, Family
from tests.support.tiny import embeddings, tiny_pipe

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # in float64

BY_NAME = {family.name: family for family in FAMILIES}
# Family -> shape of the latents that its call takes for two images.
SHAPES = {
    "Stable Diffusion 1.x": (2, 4, 8, 8),
    "Stable Diffusion XL": (2, 4, 8, 8),
    "Stable Diffusion 3": (2, 4, 8, 8),
    "FLUX.1": (2, 16, 16),
    "PixArt-Sigma": (2, 4, 8, 8),
    "Wan 2.1, video": (2, 4, 2, 2, 2),
    "SDXL, modular": (2, 4, 8, 8),
}
SHAPE = SHAPES["Stable Diffusion 1.x"]


def sampler_of(family: Family, dtype: torch.dtype = torch.float32) -> DifferentiableSampler:
    if family.missing:
        pytest.skip(f"diffusers has no {family.missing[0]}")
    pipe = family.pipe(dtype)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return DifferentiableSampler(pipe, num_inference_steps=family.steps, **family.call(dtype))


def tiny_sampler(**how: Any) -> DifferentiableSampler:
    pipe = tiny_pipe(dtype=torch.float64)
    pipe.unet.requires_grad_(False)
    pipe.vae.requires_grad_(False)
    return DifferentiableSampler(pipe, num_inference_steps=3, guidance_scale=2.0, **embeddings(torch.float64), **how)


def whole(sampler: DifferentiableSampler, **more: Any) -> StepPlan:
    return StepPlan(sampler.steps, frozenset(range(sampler.steps)), **more)


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value(images: torch.Tensor) -> torch.Tensor:
    """A smooth score of all images."""
    return (images.double() * noise(images.shape, seed=8)).sum() + images.double().square().sum()


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_from_given_latents_is_the_plain_call_with_them(name: str) -> None:
    family, latents = BY_NAME[name], noise(SHAPES[name], torch.float32)
    sampler = sampler_of(family)
    prompts = {} if family.prompts is None else {"prompt": list(family.prompts)}
    how = {"latents": latents, "num_inference_steps": family.steps, "output_type": "pt", **family.call(torch.float32)}
    if "modular" in name:
        expected = sampler.pipe(**prompts, **how, output="images")
    else:
        expected = sampler.pipe(**prompts, **how, return_dict=False)[0]
    images = sampler(family.prompts, plan=whole(sampler), latents=latents).images
    assert torch.equal(images, expected)
    assert not torch.equal(images, sampler(family.prompts, plan=whole(sampler), latents=1.01 * latents).images)


@pytest.mark.parametrize("name", SHAPES)
def test_the_gradient_in_the_latents_is_that_of_differences(name: str) -> None:
    family, latents = BY_NAME[name], noise(SHAPES[name])
    sampler = sampler_of(family, torch.float64)

    def score(at: torch.Tensor) -> torch.Tensor:
        return value(sampler(family.prompts, plan=whole(sampler), latents=at).images)

    at = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(at), at)
    other = noise(latents.shape, seed=6)
    direction = (gradient / gradient.norm() + other / other.norm()) / 2**0.5
    step = 0.01  # schedulers that step in float32 round the differences of a shorter one away
    with torch.no_grad():  # the fourth-order formula
        scores = [float(score(latents + k * step * direction)) for k in (-2, -1, 1, 2)]
    differences = (scores[0] - 8 * scores[1] + 8 * scores[2] - scores[3]) / (12 * step)
    assert float((gradient * direction).sum()) == pytest.approx(differences, abs=2e-5 * float(gradient.norm()))


@pytest.mark.parametrize(
    "how",
    [
        {"gradient_checkpointing": True, "decode": "checkpointed"},
        {"gradient_checkpointing": "selective", "decode": "selective"},
        {"gradient_checkpointing": "blocks", "decode": "blocks"},
        {"decode": "sliced"},
    ],
    ids=str,
)
def test_recomputation_gives_the_same_gradient(how: dict[str, Any]) -> None:
    def gradient(sampler: DifferentiableSampler) -> torch.Tensor:
        at = noise(SHAPE).requires_grad_()
        return torch.autograd.grad(value(sampler(plan=whole(sampler), latents=at).images), at)[0]

    torch.testing.assert_close(gradient(tiny_sampler(**how)), gradient(tiny_sampler()), rtol=1e-9, atol=1e-9)


def test_a_run_from_given_latents_is_replayed_and_renoised_from_them() -> None:
    sampler, latents = tiny_sampler(), noise(SHAPE)
    with torch.no_grad():
        rollout = sampler(plan=whole(sampler, keep_trajectory=True), latents=latents)
        images = [sampler.replay(rollout, {k: rollout.trajectory[k].before}, decode=k == 2) for k in range(3)]
        method = DraftLV(resamples=1)
        renoised = sampler(
            plan=method.plan(3, None),  # type: ignore[arg-type]
            renoising=Renoising(copies=1),
            latents=latents,
            generator=torch.Generator().manual_seed(1),
        )
    assert images[:2] == [None, None]
    assert torch.equal(images[2], rollout.images)
    assert torch.equal(rollout.trajectory[0].before, latents)  # DDIM: the first level is 1
    assert torch.equal(renoised.samples, rollout.images)
    assert len(renoised.images) == 4


@pytest.mark.parametrize(
    ("grad_steps", "sentence"),
    [
        ({1, 2}, r"latents: they require a gradient, which needs step 0 recorded, and the plan records from step 1 on"),
        (set(), r"the plan records nothing; use StepPlan\(3, grad_steps=range\(3\)\), or give latents.detach\(\)"),
    ],
)
def test_a_gradient_that_the_plan_does_not_record_is_refused(grad_steps: set[int], sentence: str) -> None:
    sampler, latents = tiny_sampler(), noise(SHAPE).requires_grad_()
    plan = StepPlan(3, frozenset(grad_steps))
    with pytest.raises(SamplerError, match=sentence):
        sampler(plan=plan, latents=latents)
    with pytest.raises(SamplerError, match=sentence):
        tiny_sampler(latents=latents)(plan=plan)
    with torch.no_grad():
        sampler(plan=plan, latents=latents)
    sampler(plan=plan, latents=latents.detach())


def test_a_call_that_cuts_the_latents_off_is_refused() -> None:
    sampler, latents = tiny_sampler(), noise(SHAPE).requires_grad_()
    decode = sampler.pipe.vae.decode
    sampler.pipe.vae.decode = lambda latents, **how: decode(latents.detach(), **how)
    with pytest.raises(SamplerError, match="its images carry no gradient of the latents that it starts from"):
        sampler(plan=whole(sampler), latents=latents)


def test_latents_that_a_call_cannot_take_are_refused() -> None:
    sampler = tiny_sampler()
    with pytest.raises(SamplerError, match="latents: it is a list; give a tensor"):
        sampler(plan=whole(sampler), latents=[0.0])  # type: ignore[arg-type]
    with pytest.raises(SamplerError, match=r"StableDiffusionPipeline: its call raised RuntimeError \("):
        sampler(plan=whole(sampler), latents=noise((3, 4, 8, 8)))
    family = BY_NAME["SD image to image"]
    image_to_image = sampler_of(family)
    with pytest.raises(SamplerError, match="StableDiffusionImg2ImgPipeline: its call takes no 'latents'"):
        image_to_image(family.prompts, plan=whole(image_to_image), latents=noise(SHAPE))
