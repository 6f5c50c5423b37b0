"""`through` gives what a processor's own call gives for Pillow images, with a gradient; what it cannot it refuses."""

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision_functional

from draft_core.errors import DraftError
from draft_core.rewards import processors
from draft_core.rewards.images import through

SIZES = [(64, 48), (50, 91), (120, 77)]
SMALL = {"size": {"height": 56, "width": 56}}
TILES = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}

# Of these every pixel counts; those of CROPPING cut off a margin.
FAMILIES = {
    "BlipImageProcessor": SMALL,
    "BeitImageProcessor": {**SMALL, "do_center_crop": False},
    "DonutImageProcessor": SMALL,
    "FlavaImageProcessor": {**SMALL, "do_center_crop": False},
    "Gemma3ImageProcessor": SMALL,
    "Glm4vImageProcessor": {},
    "GotOcr2ImageProcessor": SMALL,
    "Idefics2ImageProcessor": {"size": {"shortest_edge": 40, "longest_edge": 80}},
    "Idefics3ImageProcessor": TILES,
    "LlavaNextImageProcessor": {
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    },
    "LlavaOnevisionImageProcessor": {**SMALL, "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
    "MllamaImageProcessor": SMALL,
    "Ovis2ImageProcessor": SMALL,
    "OwlViTImageProcessor": SMALL,
    "PixtralImageProcessor": {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}},
    "Qwen2VLImageProcessor": {},
    "SegformerImageProcessor": SMALL,
    "Siglip2ImageProcessor": {"max_num_patches": 16},
    "SiglipImageProcessor": SMALL,
    "SmolVLMImageProcessor": TILES,
    "ViTImageProcessor": SMALL,
    "ViltImageProcessor": {"size": {"shortest_edge": 48}},
}
CROPPING = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    "LevitImageProcessor": {},
    "MobileViTImageProcessor": {},
}


def drawn(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(count, 3, height, width, generator=generator, dtype=torch.float32).mul(255).round().div(255)


def to_pillow(images: torch.Tensor) -> list[Image.Image]:
    levels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(image)) for image in levels]


@pytest.mark.parametrize("name", [*FAMILIES, *CROPPING])
def test_equals_the_processors_own_call_on_pillow_images(name: str) -> None:
    processor = getattr(transformers, name)(**{**FAMILIES, **CROPPING}[name])
    for height, width in SIZES:
        images = drawn(height, width).requires_grad_()
        ours = through(processor, images)
        own = processor(images=to_pillow(images.detach()), return_tensors="pt")
        assert list(ours) == list(own)
        for key in own:
            torch.testing.assert_close(ours[key], own[key], rtol=0, atol=1e-6, check_dtype=key != "pixel_mask")
        noise = torch.randn(ours["pixel_values"].shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((ours["pixel_values"] * noise).sum(), images)
        assert (gradient != 0).float().mean() > (0.999 if name in FAMILIES else 0.3)


def test_a_video_processor_is_given_frames() -> None:
    processor = transformers.Qwen2VLVideoProcessor()
    videos = drawn(64, 48, count=8).unflatten(0, (2, 4)).requires_grad_()
    ours = through(processor, videos, do_sample_frames=False)
    frames = [to_pillow(video) for video in videos.detach()]
    own = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
    torch.testing.assert_close(ours["pixel_values_videos"], own["pixel_values_videos"], rtol=0, atol=1e-6)
    assert torch.equal(ours["video_grid_thw"], own["video_grid_thw"])
    assert torch.autograd.grad(ours["pixel_values_videos"].square().sum(), videos)[0].ne(0).float().mean() > 0.99


def test_gradient_is_that_of_the_filter() -> None:
    """Against the mean slope of the processor's own call between images that differ by many levels."""
    processor = transformers.ViTImageProcessor(**SMALL)
    images = drawn(90, 70, count=1) * 0.6 + 0.2
    direction = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    direction = torch.nn.functional.interpolate(direction, (90, 70), mode="bilinear").sign() * 0.15

    def value(images: torch.Tensor) -> torch.Tensor:
        return processor(images=to_pillow(images), return_tensors="pt")["pixel_values"].square().sum()

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(through(processor, leaf)["pixel_values"].square().sum(), leaf)
    slope = (value(images + direction) - value(images - direction)) / 2
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=0.02, atol=0)


def test_levels_are_rounded_and_overshoot_is_clamped() -> None:
    processor = transformers.CLIPImageProcessor(**CROPPING["CLIPImageProcessor"])
    images = drawn(64, 48)
    shifted = through(processor, images + 0.4 / 255)
    torch.testing.assert_close(shifted["pixel_values"], through(processor, images)["pixel_values"], rtol=0, atol=1e-6)
    over = (images * 1.2 - 0.1).requires_grad_()
    values = through(processor, over)["pixel_values"]
    assert torch.equal(values, through(processor, over.detach().clamp(0, 1))["pixel_values"])
    assert torch.autograd.grad(values.sum(), over)[0][(over < 0) | (over > 1)].eq(0).all()


def test_black_and_white_pixels_have_a_gradient() -> None:
    images = (drawn(48, 64) > 0.5).float().requires_grad_()
    values = through(transformers.ViTImageProcessor(**SMALL), images)["pixel_values"]
    assert torch.autograd.grad(values.sum(), images)[0].ne(0).all()


def test_half_precision_and_black_images() -> None:
    """Black images have no level from which bytes and fractions could be told apart."""
    processor = transformers.Owlv2ImageProcessor(**SMALL)
    for images in (torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64).index_fill(3, torch.arange(9), 1.0)):
        own = processor(images=to_pillow(images), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(through(processor, images.half())["pixel_values"], own, rtol=0, atol=1e-6)


def test_a_first_call_in_inference_mode_does_not_spoil_later_ones() -> None:
    processor = transformers.ViTImageProcessor(**SMALL)
    images = drawn(64, 48)
    with torch.inference_mode():
        first = through(processor, images)["pixel_values"]
    leaf = images.clone().requires_grad_()
    again = through(processor, leaf)["pixel_values"]
    assert torch.equal(first, again)
    assert torch.autograd.grad(again.sum(), leaf)[0].ne(0).all()


def another_filter(levels: torch.Tensor, resized: torch.Tensor, given: dict) -> torch.Tensor:
    return torchvision_functional.resize(levels.detach(), list(resized.shape[-2:]), antialias=False)


def no_rounding(levels: torch.Tensor, resized: torch.Tensor, given: dict) -> torch.Tensor:
    return resized.detach()


@pytest.mark.parametrize("name", ["Qwen2VLImageProcessor", "SiglipImageProcessor", "SmolVLMImageProcessor"])
@pytest.mark.parametrize("bug", [another_filter, no_rounding])
def test_a_wrong_resize_is_caught_by_the_comparison(monkeypatch: pytest.MonkeyPatch, name: str, bug: object) -> None:
    monkeypatch.setattr(processors, "_resized_bytes", bug)
    with pytest.raises(DraftError, match=f"{name}: cannot be followed .* values differ"):
        through(getattr(transformers, name)(**FAMILIES[name]), drawn(64, 48))


class Detaching(transformers.CLIPImageProcessor):
    def rescale_and_normalize(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        return super().rescale_and_normalize(images.detach(), *more)


class Branching(transformers.CLIPImageProcessor):
    def rescale_and_normalize(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        return super().rescale_and_normalize(images if images.dtype == torch.uint8 else images / 255, *more)


@pytest.mark.parametrize(
    ("processor", "why"),
    [
        (Detaching(), "Detaching: .* it cuts the gradient"),
        (Branching(), "Branching: .* its values differ from those on Pillow images by"),
        (transformers.CLIPImageProcessorPil(), 'works with the backend .pil.; load it with backend="torchvision"'),
        (transformers.ImageGPTImageProcessor(), "its own call on Pillow images raised ValueError: Clusters must be"),
        (transformers.VivitImageProcessor(), "VivitImageProcessor: .*cuts the gradient"),
        (transformers.Emu3ImageProcessor(), "Emu3ImageProcessor: .* on tensors it raised"),
    ],
    ids=["detaching", "branching", "pil", "imagegpt", "vivit", "emu3"],
)
def test_what_cannot_be_followed_is_refused_by_name(processor: object, why: str) -> None:
    with pytest.raises(DraftError, match=why):
        through(processor, torch.rand(1, 3, 64, 48))


def test_other_threads_resize_as_ever() -> None:
    """Nothing of torch or torchvision is replaced for others."""
    levels = torch.rand(1, 3, 64, 48) * 255
    plain = torchvision_functional.resize(levels, [32, 24])
    found = []

    def elsewhere() -> None:
        found.append(torchvision_functional.resize(levels, [32, 24]))

    class Waiting(transformers.CLIPImageProcessor):
        def rescale_and_normalize(self, images: torch.Tensor, *more: object) -> torch.Tensor:
            other = threading.Thread(target=elsewhere)
            other.start()
            other.join()
            return super().rescale_and_normalize(images, *more)

    through(Waiting(), drawn(64, 48))
    assert len(found) >= 2
    assert all(torch.equal(plain, resized) for resized in found)
    assert torch.equal(torchvision_functional.resize(levels, [32, 24]), plain)


def test_the_page_has_every_processor_of_the_version_that_it_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "processors.md").read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}:" not in page:
        pytest.skip("the page is of another version of transformers")
    refused, followed = page.split("## Refused")[1].split("## Followed")
    for name in (*FAMILIES, *CROPPING, "Qwen2VLVideoProcessor", "Owlv2ImageProcessor"):
        assert f"`{name}`" in followed
    for name in ("ImageGPTImageProcessor", "VivitImageProcessor", "Emu3ImageProcessor"):
        assert f"| `{name}` |" in refused
    models = Path(transformers.__file__).parent / "models"
    files = [*models.glob("*/image_processing_*.py"), *models.glob("*/video_processing_*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.parent.name != "auto")
    named = set(re.findall(r"^class (\w+Processor)\(", text, re.MULTILINE))
    assert len(named) > 100
    assert not {name for name in named if f"`{name}`" not in page}
