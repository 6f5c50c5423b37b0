"""A colour for every prompt, read from the column of its row."""

from __future__ import annotations

import pytest
import torch

from draft_core import load_reward
from draft_core.errors import RewardError


def test_every_image_is_compared_with_the_colour_of_its_own_row() -> None:
    """The scores are those that `palette` gives each image with that colour alone."""
    images = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    colours = ["#1d3557", "#e63946", "#F1C453"]
    expected = [load_reward("palette", colours=[colour])(images[i : i + 1], [""]) for i, colour in enumerate(colours)]
    found = load_reward("asked-colour")(images, [""] * 3, columns={"colour": colours})
    torch.testing.assert_close(found, torch.cat(expected))


def test_the_background_counts_for_nothing() -> None:
    images = torch.ones(1, 3, 4, 4)
    images[:, :, :2] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    reward = load_reward("asked-colour", background={"colour": "#ffffff"})
    found = reward(images, [""], columns={"colour": ["#ff0000"]})
    torch.testing.assert_close(found, torch.zeros(1), atol=1e-4, rtol=0)


def test_a_text_that_is_no_colour_is_refused_by_name() -> None:
    with pytest.raises(RewardError, match="column 'colour': 'teal' is no colour; write # and six"):
        load_reward("asked-colour")(torch.zeros(1, 3, 4, 4), [""], columns={"colour": ["teal"]})
