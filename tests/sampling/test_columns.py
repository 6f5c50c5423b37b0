"""An image of its own for every prompt: the samples of the pipeline's own call, in every bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from draft_core import CallColumns, DifferentiableSampler, PromptRow
from draft_core.errors import DraftError, SamplerError
from draft_core.evaluation.evaluate import evaluate
from draft_core.plan import Renoising, StepPlan
from draft_core.rewards.objective import Objective
from tests.support.families import FAMILIES, Family, sd
from tests.support.image_classes import IMAGE_CLASSES
from tests.support.video_classes import VIDEO_CLASSES

NAMED: dict[str, Family] = {family.name: family for family in (*FAMILIES, *IMAGE_CLASSES, *VIDEO_CLASSES)}
# Image to image, ControlNet, editing by an instruction, and image to video.
TOGETHER = (
    "SD image to image",
    "SD with ControlNet",
    "StableDiffusionInstructPix2PixPipeline",
    "FluxKontextPipeline",
    "LTXImageToVideoPipeline",
)
ONE_AT_A_TIME = "WanImageToVideoPipeline"
PROMPTS = ("a cat", "a red dog")


def pil(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def rows(size: int = 16) -> list[PromptRow]:
    return [PromptRow(prompt, {"source": pil(place, size, size)}) for place, prompt in enumerate(PROMPTS)]


def sampler_of(name: str, pipe: Any = None, **more: Any) -> tuple[DifferentiableSampler, list[PromptRow]]:
    family = NAMED[name]
    call = family.call(torch.float32)
    size = call.pop("image").shape[-1]
    prompts, names = rows(size), {"image": "source"}
    pipe = family.pipe() if pipe is None else pipe
    columns = CallColumns(names, prompts[0])
    return DifferentiableSampler(pipe, num_inference_steps=family.steps, columns=columns, **call, **more), prompts


def noise(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(place) for place in range(count)]


def drawn(sampler: DifferentiableSampler, prompts: list[PromptRow], generators: list[torch.Generator]) -> torch.Tensor:
    with torch.no_grad():
        return sampler(prompts, plan=StepPlan(sampler.steps, frozenset()), generator=generators).images


def own_call(sampler: DifferentiableSampler, **call: Any) -> torch.Tensor:
    made = sampler.pipe(
        num_inference_steps=sampler.num_inference_steps, output_type="pt", **sampler.call_kwargs, **call
    )
    images: torch.Tensor = made.frames if hasattr(made, "frames") else made.images
    return images


@pytest.mark.parametrize("name", TOGETHER)
def test_the_samples_are_those_of_the_pipelines_call_with_a_list_of_images(name: str) -> None:
    sampler, prompts = sampler_of(name)
    assert sampler.takes_each
    given = [row.columns["source"] for row in prompts]
    expected = own_call(sampler, prompt=list(PROMPTS), image=given, generator=noise())
    samples = drawn(sampler, prompts, noise())
    assert torch.equal(samples, expected)
    turned = drawn(sampler, [PromptRow(prompt, prompts[1].columns) for prompt in prompts], noise())
    assert not torch.equal(turned[0], samples[0])  # the image counts
    torch.testing.assert_close(turned[1], samples[1], atol=1e-5, rtol=1e-5)  # its own alone


@pytest.mark.parametrize("name", [*TOGETHER, ONE_AT_A_TIME])
def test_one_prompt_alone_has_its_image_as_the_call_takes_it(name: str) -> None:
    sampler, prompts = sampler_of(name)
    for row, generator in zip(prompts, noise(), strict=True):
        expected = own_call(sampler, prompt=str(row), image=row.columns["source"], generator=[generator])
        assert torch.equal(drawn(sampler, [row], [generator.manual_seed(generator.initial_seed())]), expected)


def test_a_call_that_takes_one_image_is_refused_two_and_evaluated_one_at_a_time() -> None:
    sampler, prompts = sampler_of(ONE_AT_A_TIME)
    assert not sampler.takes_each
    with pytest.raises(SamplerError, match="takes one image for all its prompts, and these have different ones; set t"):
        drawn(sampler, prompts, noise())
    seen = evaluate(sampler, Objective({}), prompts, [0], batch_size=2).images
    for row, image in zip(prompts, seen, strict=True):
        alone = own_call(sampler, prompt=str(row), image=row.columns["source"], generator=noise(1))
        assert torch.equal(image, alone[0, alone.shape[1] // 2])


def refuse(images: list[Any]) -> list[Any]:
    raise ValueError("no list")


MISREAD: dict[str, Callable[[list[Any]], list[Any]]] = {
    "the first image for every prompt": lambda images: images[:1] * len(images),
    "each prompt the image of another": lambda images: images[::-1],
    "several images for every prompt": lambda images: [Image.blend(images[0], other, 0.5) for other in images],
    "no list": refuse,
}


@pytest.mark.parametrize("misread", MISREAD)
def test_calls_that_do_not_keep_the_images_apart_are_recognised(misread: str) -> None:
    """Planted where the call reads its images."""
    sampler, _ = sampler_of("SD image to image")
    preprocess = sampler.pipe.image_processor.preprocess

    def planted(image: Any, *args: Any, **kwargs: Any) -> Any:
        return preprocess(MISREAD[misread](image) if isinstance(image, list) else image, *args, **kwargs)

    sampler.pipe.image_processor.preprocess = planted
    assert not sampler.takes_each


def test_several_images_of_a_prompt_are_found_not_to_keep_their_order() -> None:
    """This call gives the images of a list to its samples by turns, two of each prompt in a row or not."""
    sampler, _ = sampler_of("SD image to image", num_images_per_prompt=2)
    pipe = sampler.pipe
    images = [pil(0), pil(1)]
    with torch.no_grad():
        mixed = pipe.prepare_latents(
            pipe.image_processor.preprocess(images),
            torch.tensor([1]),
            2,
            2,
            torch.float32,
            torch.device("cpu"),
            noise(4),
        )
        same = pipe.prepare_latents(
            pipe.image_processor.preprocess(images[:1] * 2),
            torch.tensor([1]),
            2,
            2,
            torch.float32,
            torch.device("cpu"),
            noise(4),
        )
    first_prompt_keeps_its_image = torch.allclose(mixed[:2], same[:2], atol=1e-3)
    assert sampler.takes_each == first_prompt_keeps_its_image


@pytest.mark.parametrize("batched", [False, True])
def test_renoised_copies_have_the_image_of_their_prompt(batched: bool) -> None:
    """What DRaFT-LV replays in one batch of all copies is what it replays for each prompt alone."""
    sampler, prompts = sampler_of("SD with ControlNet")
    last = StepPlan(sampler.steps, frozenset({sampler.steps - 1}))
    renoising = Renoising(copies=2, batched=batched)
    with torch.no_grad():
        both = sampler(prompts, plan=last, renoising=renoising, generator=noise())
        alone = [
            sampler([row], plan=last, renoising=renoising, generator=[noise()[place]])
            for place, row in enumerate(prompts)
        ]
    assert both.prompts == (*PROMPTS, *PROMPTS, *PROMPTS)
    assert [row.columns for row in both.prompts] == [row.columns for row in prompts] * 3  # type: ignore[attr-defined]
    for place, single in enumerate(alone):
        torch.testing.assert_close(both.images[place::2], single.images, atol=1e-5, rtol=1e-5)


def test_images_of_two_sizes_share_no_call() -> None:
    sampler, _ = sampler_of("SD image to image")
    prompts = [PromptRow("a cat", {"source": pil(0)}), PromptRow("a dog", {"source": pil(1, 32, 16)})]
    with pytest.raises(
        SamplerError, match="of one prompt is 16 x 16 pixels, that of another 32 x 16, and a call takes"
    ):
        drawn(sampler, prompts, noise())


def test_an_evaluation_compares_images_of_one_size() -> None:
    sampler, _ = sampler_of("SD image to image")
    prompts = [PromptRow("a cat", {"source": pil(0)}), PromptRow("a dog", {"source": pil(1, 32, 16)})]
    with pytest.raises(SamplerError, match="its images are 16 x 16 and 32 x 16 pixels, and an evaluation compares im"):
        evaluate(sampler, Objective({}), prompts, [0], batch_size=2)


def test_processes_draw_what_one_draws_where_a_call_takes_one_image() -> None:
    """Each makes its share in calls of one prompt, equally many."""
    sampler, prompts = sampler_of(ONE_AT_A_TIME)
    whole = evaluate(sampler, Objective({}), prompts, [0, 1], batch_size=2).images
    shares: list[Any] = [[], []]
    for rank in (0, 1):
        evaluate(
            sampler,
            Objective({}),
            prompts,
            [0, 1],
            batch_size=2,
            share=(rank, 2),
            gather=lambda part, rank=rank: shares[rank].append(part) or [part, part],
        )
    (own, *_), (other, *_) = shares[0][-1], shares[1][-1]
    torch.testing.assert_close(torch.stack([own, other], 1).flatten(0, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_prompt_without_its_row_is_refused() -> None:
    sampler, _ = sampler_of("SD image to image")
    with pytest.raises(DraftError, match=r"Img2ImgPipeline: image: prompt 'a cat' has no column 'source'; take the"):
        sampler(["a cat"], plan=StepPlan(sampler.steps, frozenset()))


def test_every_prompt_can_have_a_negative_one() -> None:
    pipe = NAMED["Stable Diffusion 1.x"].pipe()
    prompts = [PromptRow(text, {"avoid": avoid}) for text, avoid in zip(PROMPTS, ("blue", ""), strict=True)]
    columns = CallColumns({"negative_prompt": "avoid"}, prompts[0])
    sampler = DifferentiableSampler(pipe, num_inference_steps=2, columns=columns, guidance_scale=4.0)
    expected = own_call(sampler, prompt=list(PROMPTS), negative_prompt=["blue", ""], generator=noise())
    assert torch.equal(drawn(sampler, prompts, noise()), expected)


def test_an_argument_that_the_call_lacks_is_refused() -> None:
    with pytest.raises(SamplerError, match="its call takes no 'control_image'"):
        DifferentiableSampler(sd(), num_inference_steps=2, columns=CallColumns({"control_image": "source"}, rows()[0]))
