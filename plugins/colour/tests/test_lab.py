"""CIELAB: published values, scikit-image's, and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draft_reward_colour.lab import cie76, lab_of, polar, to_lab

# sRGB primaries and neutrals, D65: Lindbloom's calculator gives these to two digits.
KNOWN = {
    "#ffffff": (100.0, 0.0, 0.0),
    "#000000": (0.0, 0.0, 0.0),
    "#777777": (50.03, 0.0, 0.0),
    "#ff0000": (53.24, 80.09, 67.20),
    "#00ff00": (87.73, -86.18, 83.18),
    "#0000ff": (32.30, 79.19, -107.86),
}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("colour", "expected"), KNOWN.items())
def test_known_colours(colour: str, expected: tuple[float, ...]) -> None:
    found = lab_of(colour, torch.zeros(1, dtype=torch.float64)).flatten().tolist()
    assert found == pytest.approx(expected, abs=0.03)


def test_coordinates_and_distances_are_those_of_scikit_image() -> None:
    color = pytest.importorskip("skimage.color", reason="scikit-image is missing: its CIELAB is the reference")
    images = drawn(2, 3, 40, 50)
    images[0] *= 0.05  # the straight parts of both curves
    found = to_lab(images)
    pixels = images.movedim(1, -1).numpy()
    expected = color.rgb2lab(pixels)
    np.testing.assert_allclose(found.movedim(1, -1).numpy(), expected, atol=0.03)
    _, chroma, hue = np.moveaxis(color.lab2lch(expected), -1, 0)
    ours = polar(found)
    np.testing.assert_allclose(ours.chroma.numpy(), chroma, atol=0.03)
    apart = (ours.hue.numpy() - np.degrees(hue) + 180) % 360 - 180
    assert np.abs(apart * chroma).max() < 3  # in degrees times chroma: 0.05 of a distance
    distance = color.deltaE_cie76(expected, color.rgb2lab(np.array([42, 157, 143]) / 255))
    np.testing.assert_allclose(cie76(found, lab_of("#2a9d8f", images)).numpy(), distance, atol=0.04)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_gradients_are_finite_differences(part: int) -> None:
    """In float64; black and white parts and levels outside [0, 1] among them."""

    def read(images: torch.Tensor) -> torch.Tensor:
        lab = to_lab(images)
        return (lab, cie76(lab, lab_of("#e63946", images)), torch.stack(polar(lab)))[part]

    images = drawn(1, 3, 4, 4)
    images[..., 0] *= 0.02
    images[..., 1] = images[..., 1] * 0.1 + 0.99
    assert torch.autograd.gradcheck(read, images.requires_grad_(), eps=1e-6, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_grey_has_hue_zero_and_no_gradient_that_is_not_a_number(level: float) -> None:
    images = torch.full((1, 3, 2, 2), level, requires_grad=True)
    hue, chroma = polar(to_lab(images))
    assert not hue.any()
    assert chroma.max() < 1e-3
    (hue.sum() + chroma.sum()).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_a_colour_met_exactly_has_distance_zero_and_a_finite_gradient() -> None:
    images = torch.tensor([0x2A, 0x9D, 0x8F]).view(1, 3, 1, 1).div(255).requires_grad_()
    distance = cie76(to_lab(images), lab_of("#2a9d8f", images))
    assert distance.item() == pytest.approx(0, abs=1e-4)
    distance.sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
