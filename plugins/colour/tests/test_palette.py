"""The palette: worked by hand, and what a recipe may say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from draft_reward_colour import Background, PaletteConfig
from draft_reward_colour.reward import PaletteReward

from draft_core.errors import RecipeError, RewardError


def filled(*colours: str) -> torch.Tensor:
    """An image (1, 3, 2, N) with a column of each colour."""
    levels = [[int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)] for colour in colours]
    return torch.tensor(levels).T[None, :, None].expand(1, 3, 2, len(colours)).clone()


def score(images: torch.Tensor, *colours: str, **fields: Any) -> float:
    return PaletteReward(PaletteConfig(colours=colours, **fields))(images, [""] * len(images)).item()


def test_colours_of_the_palette_cost_nothing() -> None:
    assert score(filled("#000000", "#ffffff", "#ff0000"), "#ff0000", "#ffffff", "#000000") == pytest.approx(0, abs=1e-3)


def test_one_colour_is_measured_by_its_distance() -> None:
    """White is 100 from black; mid grey 50.03 from black, and 49.97 from white."""
    assert score(filled("#ffffff"), "#000000") == pytest.approx(-100, abs=1e-3)
    assert score(filled("#ffffff", "#000000"), "#000000") == pytest.approx(-50, abs=1e-3)
    assert score(filled("#777777"), "#000000") == pytest.approx(-50.03, abs=0.01)


@pytest.mark.parametrize("sharpness", [0.01, 0.5, 3.0])
def test_the_minimum_is_soft(sharpness: float) -> None:
    near, far = 49.966, 50.034
    soft = -math.log(math.exp(-sharpness * near) + math.exp(-sharpness * far)) / sharpness
    assert score(filled("#777777"), "#000000", "#ffffff", sharpness=sharpness) == pytest.approx(-soft, abs=0.01)


def test_the_background_is_left_out() -> None:
    images = filled("#ffffff", "#fdfdfd", "#808080", "#000000")
    left_out = {"background": Background(colour="#FFFFFF", tolerance=5)}
    grey = 53.59
    assert score(images, "#000000") == pytest.approx(-(100 + 99.3 + grey) / 4, abs=0.05)
    assert score(images, "#000000", **left_out) == pytest.approx(-grey / 2, abs=0.01)


def test_an_image_of_background_alone_is_scored_whole() -> None:
    assert score(filled("#ffffff", "#ffffff"), "#000000", background=Background()) == pytest.approx(-100, abs=1e-3)


def test_the_gradient_leads_to_the_nearest_colour() -> None:
    """Steps against the gradient end on the colour that was nearer at the start."""
    reward = PaletteReward(PaletteConfig(colours=("#2a9d8f", "#e76f51"), background=None))
    images = filled("#338877", "#c08060").requires_grad_()
    optimiser = torch.optim.Adam([images], lr=2e-3)
    for _ in range(300):
        optimiser.zero_grad()
        (-reward(images, [""])).sum().backward()
        optimiser.step()
    assert (images - filled("#2a9d8f", "#e76f51")).abs().max() < 0.01


def test_a_broken_image_has_no_score_and_leaves_the_others_theirs() -> None:
    images = filled("#ff0000", "#ffffff").repeat(3, 1, 1, 1)
    images[1, 0, 0, 0] = math.nan
    reward = PaletteReward(PaletteConfig(colours=("#ff0000",), background=Background()))
    found = reward(images, [""] * 3)
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_images_that_are_no_rgb_batch_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(RewardError, match=r"reward 'palette'.*pass RGB images \(B, 3, H, W\)"):
        score(images, "#000000")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"colours": ["white"]}, "'white' is no colour; write # and six hexadecimal digits"),
        ({"colours": ["#fff"]}, "'#fff' is no colour"),
        ({"colours": [None]}, "a bare # begins a comment in YAML"),
        ({"colours": ["#2A9D8F", "#2a9d8f"]}, "'#2a9d8f' is listed twice"),
        ({"colours": []}, "the list is empty"),
        ({"colours": [f"#00000{digit}" for digit in range(9)]}, "at most 8"),
        ({"colours": ["#000000"], "sharpness": 0}, "greater than 0"),
        ({"colours": ["#000000"], "background": {"colour": "paper"}}, "'paper' is no colour"),
        ({"colours": ["#000000"], "background": {"tolerance": -1}}, "greater than or equal to 0"),
        ({}, "the field is missing"),
    ],
)
def test_what_is_no_palette_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        PaletteConfig(**fields)
