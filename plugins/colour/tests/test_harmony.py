"""Colour harmony: sectors worked by hand, the best fit against brute force, and what a recipe may say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from draft_reward_colour import ColourHarmonyConfig
from draft_reward_colour.harmony import TEMPLATES, best_fit, outside
from draft_reward_colour.lab import polar, to_lab
from draft_reward_colour.reward import ColourHarmonyReward

from draft_core.errors import RecipeError


def of_template(letter: str, turn: float = 0.0) -> torch.Tensor:
    sectors = torch.tensor(TEMPLATES[letter], dtype=torch.float64)
    sectors[:, 0] += turn
    return sectors


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("letter", "turn", "hue", "expected"),
    [
        ("i", 0, 9, 0),
        ("i", 0, -100, 91),
        ("i", 350, 20, 21),
        ("i", 0, 180, 171),
        ("V", 0, 50, 3.2),
        ("L", 0, 29, 20),
        ("L", 0, 30, 20.4),
        ("L", 0, 140, 10.4),
        ("L", 0, 240.3, 110.7),
        ("I", 90, 90, 0),
        ("I", 90, -90, 0),
        ("I", 0, 90, 81),
        ("T", 0, 91, 1),
        ("Y", 0, 170, 1),
        ("X", 0, 90, 43.2),
        ("X", 0, 134, 0),
    ],
)
def test_degrees_outside_the_nearest_sector(letter: str, turn: float, hue: float, expected: float) -> None:
    for round_ in (-360, 0, 360):
        found = outside(torch.tensor([hue + round_], dtype=torch.float64), of_template(letter, turn))
        assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("templates", [*((letter,) for letter in TEMPLATES), tuple(TEMPLATES)])
def test_the_best_fit_is_that_of_every_turn_of_every_template(templates: tuple[str, ...]) -> None:
    hues, weights = (drawn(3, 40) * 360).requires_grad_(), drawn(3, 40, seed=1)
    found = (outside(hues, best_fit(hues, weights, templates)) * weights).sum(1)
    tried = torch.stack(
        [
            (outside(hues, of_template(letter, step / 10)) * weights).sum(1)
            for letter in templates
            for step in range(3600)
        ]
    )
    torch.testing.assert_close(found, tried.amin(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("narrow", "wide"), [("i", "V"), ("V", "T"), ("i", "L"), ("I", "Y"), ("Y", "X"), ("V", "Y")])
def test_a_wider_template_fits_at_least_as_well(narrow: str, wide: str) -> None:
    hues, weights = drawn(5, 30) * 360, torch.ones(5, 30, dtype=torch.float64)
    fits = [(outside(hues, best_fit(hues, weights, [letter])) * weights).sum(1) for letter in (narrow, wide)]
    assert (fits[1] <= fits[0] + 1e-9).all()


def score(images: torch.Tensor, **fields: Any) -> torch.Tensor:
    return ColourHarmonyReward(ColourHarmonyConfig(**fields))(images, [""] * len(images))


def test_the_score_is_the_mean_angle_weighted_by_chroma() -> None:
    """Red and green, one pixel each: `i` covers the hue with more chroma, and the other pays the rest of the way."""
    images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).T[None, :, None]
    hues = [math.degrees(math.atan2(67.20, 80.09)), math.degrees(math.atan2(83.18, -86.18))]
    chroma = [math.hypot(67.20, 80.09), math.hypot(83.18, 86.18)]
    apart = hues[1] - hues[0]
    share = min(chroma) / sum(chroma)
    assert apart > 93.6
    assert score(images, templates=("i",)).item() == pytest.approx(-(apart - 18) * share, abs=0.05)
    assert score(images, templates=("V",)).item() == pytest.approx(-(apart - 93.6) * share, abs=0.05)
    assert score(images, templates=("T",)).item() == 0


def test_grey_costs_nothing_and_weighs_nothing() -> None:
    grey = torch.full((1, 3, 8, 8), 0.4)
    assert score(grey).item() == 0
    images = drawn(1, 3, 8, 8).float()
    beside = torch.cat([images, grey], dim=3)
    torch.testing.assert_close(score(beside), score(images), rtol=1e-3, atol=0)


def test_a_grey_image_has_a_finite_gradient() -> None:
    images = torch.full((1, 3, 8, 8), 0.4, requires_grad=True)
    score(images).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("letter", TEMPLATES)
def test_the_gradient_is_that_of_the_least_mean(letter: str) -> None:
    """Central differences in float64 of the whole search, along the gradient."""

    def mean(images: torch.Tensor) -> torch.Tensor:
        hue, chroma = (each.flatten(1) for each in polar(to_lab(images)))
        return (chroma * outside(hue, best_fit(hue, chroma, [letter]))).mean()

    images = (0.2 + 0.6 * drawn(1, 3, 12, 12)).requires_grad_()
    (gradient,) = torch.autograd.grad(mean(images), images)
    with torch.no_grad():
        step = 1e-6 * gradient / gradient.norm()
        difference = (mean(images + step) - mean(images - step)) / 2e-6
    assert difference.item() == pytest.approx(gradient.norm().item(), rel=2e-2)


def test_steps_along_the_gradient_bring_hues_together() -> None:
    images = (0.25 + 0.5 * drawn(1, 3, 8, 8)).float().requires_grad_()
    before = score(images, templates=("I",)).item()
    chroma = polar(to_lab(images)).chroma.mean().item()
    optimiser = torch.optim.Adam([images], lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        (-score(images, templates=("I",))).sum().backward()
        optimiser.step()
    assert before < -15
    assert score(images, templates=("I",)).item() > -1
    assert polar(to_lab(images)).chroma.mean().item() > 0.5 * chroma


def test_a_broken_image_has_no_score_and_leaves_the_others_theirs() -> None:
    images = drawn(3, 3, 6, 6).float()
    expected = score(images)
    images[1, 0, 0, 0] = math.nan
    found = score(images)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"templates": ["Z"]}, "input should be 'i', 'V', 'L', 'I', 'T', 'Y' or 'X'"),
        ({"templates": []}, "the list is empty"),
        ({"templates": ["i", "i"]}, "'i' is listed twice"),
    ],
)
def test_what_is_no_template_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        ColourHarmonyConfig(**fields)
