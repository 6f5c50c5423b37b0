"""Image operations against Pillow, with their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.overrides import TorchFunctionMode

from draft_core.rewards.images import (
    FILTERS,
    center_crop,
    normalize,
    resampling_weights,
    resize_and_crop_like_pil,
    resize_like_pil,
    resize_shortest_like_pil,
    to_pil,
)


def noise_image(height: int, width: int) -> torch.Tensor:
    """Smooth shapes with hard edges and full range, in whole levels, (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, 3, 7, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
    noise = 0.1 * torch.rand(1, 3, height, width, generator=generator)
    return ((fine + noise).clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(224, 224), (300, 401), (64, 64), (427, 640), (37, 91)])
@pytest.mark.parametrize("target", [(224, 224), (112, 150), (48, 31)])
def test_resize_is_pillows_to_the_level(size: tuple[int, int], target: tuple[int, int], filter: str) -> None:
    image = noise_image(*size)
    ours = resize_like_pil(image, *target, filter=filter)
    pillow = to_pil(image[0]).resize(target[::-1], Image.Resampling[filter.upper()])
    expected = torch.from_numpy(np.asarray(pillow).copy()).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(ours * 255, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(512, 224), (640, 427), (300, 60)])
def test_rows_come_first_also_in_tall_images(size: tuple[int, int], filter: str) -> None:
    image, how = noise_image(*size), Image.Resampling[filter.upper()]
    ours = resize_like_pil(image, 160, 160, filter=filter)
    pillow = to_pil(image[0]).resize((160, size[0]), how).resize((160, 160), how)
    expected = torch.from_numpy(np.asarray(pillow).copy()).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(ours * 255, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("source", "target"), [(50, 50), (91, 13), (13, 91), (1, 7), (7, 1)])
def test_each_row_of_weights_sums_to_one(source: int, target: int, filter: str) -> None:
    weights = resampling_weights(source, target, filter)
    assert weights.shape == (target, source)
    torch.testing.assert_close(weights.sum(1), torch.ones(target, dtype=torch.float64), rtol=0, atol=1e-5)


def test_resize_passes_the_gradient_of_its_linear_map() -> None:
    image = noise_image(20, 30).double().clamp(0.2, 0.8).requires_grad_()
    direction = torch.randn(1, 3, 8, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (grad,) = torch.autograd.grad((resize_like_pil(image, 8, 11) * direction).sum(), image)
    expected = resampling_weights(20, 8).T @ direction @ resampling_weights(30, 11)
    torch.testing.assert_close(grad, expected)


def test_out_of_range_pixels_stay_finite_and_are_clamped() -> None:
    image = noise_image(20, 30) * 1.2 - 0.1
    resized = resize_like_pil(image, 8, 8)
    assert resized.min() >= 0
    assert resized.max() <= 1


def test_the_shortest_side_is_resized() -> None:
    assert resize_shortest_like_pil(noise_image(300, 401), 224).shape == (1, 3, 224, 299)
    assert resize_shortest_like_pil(noise_image(401, 300), 224).shape == (1, 3, 299, 224)


@pytest.mark.parametrize("rounding", ["half-even", "floor"])
@pytest.mark.parametrize("size", [(224, 224), (300, 401), (401, 300), (61, 300), (900, 31), (37, 91)])
def test_resize_and_crop_are_both_of_them_one_after_the_other(size: tuple[int, int], rounding: str) -> None:
    image = noise_image(*size)
    direction = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for prepare in (
        lambda pixels: resize_and_crop_like_pil(pixels, 56, 48, rounding=rounding),
        lambda pixels: center_crop(resize_shortest_like_pil(pixels, 56), 48, rounding=rounding),
    ):
        pixels = image.clone().requires_grad_()
        found.append(prepare(pixels))
        gradients.append(torch.autograd.grad((found[-1] * direction).sum(), pixels)[0])
    assert torch.equal(*found)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(4000, 3), (3, 4000), (20000, 800), (800, 20000)])
def test_a_crop_takes_no_memory_for_what_it_discards(size: tuple[int, int]) -> None:
    image = torch.full((1, 1, 1, 1), 0.4).expand(1, 3, *size)
    sizes: list[int] = []

    class Count(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.untyped_storage().nbytes())
            return result

    with Count():
        cropped = resize_and_crop_like_pil(image, 224, 224, rounding="floor")
    torch.testing.assert_close(cropped, torch.full((1, 3, 224, 224), 0.4), atol=1e-6, rtol=0)
    assert max(sizes) < 20e6, "the image itself would take 192 MB, the matrix for all of its rows a gigabyte"


@pytest.mark.parametrize(("rounding", "left"), [("half-even", 38), ("floor", 37)])
def test_the_crop_of_an_odd_margin(rounding: str, left: int) -> None:
    image = torch.arange(299.0).expand(1, 3, 224, 299)
    cropped = center_crop(image, 224, rounding=rounding)
    assert cropped.shape == (1, 3, 224, 224)
    assert cropped[0, 0, 0, 0] == left


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a side of 10 pixels is smaller than the crop, 224"):
        center_crop(torch.zeros(1, 3, 10, 300), 224, rounding="floor")


def test_normalize_is_per_channel() -> None:
    image = torch.ones(2, 3, 1, 1)
    assert normalize(image, (1.0, 0.5, 0.0), (1.0, 0.5, 0.25))[0].flatten().tolist() == [0.0, 1.0, 4.0]


def test_an_unknown_rounding_or_filter_is_a_value_error() -> None:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="rounding is 'up', not one of"):
        center_crop(images, 4, rounding="up")
    with pytest.raises(ValueError, match="filter is 'nearest', not one of"):
        resize_like_pil(images, 8, 8, filter="nearest")
