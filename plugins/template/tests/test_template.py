"""The reward keeps the contract, and does what its name says."""

import torch

from draft_core import load_reward
from draft_core.testing import RewardContract


class TestTemplate(RewardContract):
    """Gradients, independence of images, precision, declared capabilities: one test for each promise."""

    kind = "template"


def test_red_is_warmer_than_blue() -> None:
    """Pure colours have known scores."""
    red, blue = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    images = torch.stack([red, blue])[:, :, None, None].expand(2, 3, 8, 8)
    torch.testing.assert_close(load_reward("template")(images, ["", ""]), torch.tensor([1.0, -1.0]))
