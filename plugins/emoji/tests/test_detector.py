"""emoji-detector as the weights of the reward detection: found by its alias, it tells what two drawings show."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2.functional import resize

from draft_core import load_catalog, load_pipeline, load_reward

if "detection" not in load_catalog().rewards:
    pytest.skip("draft-reward-detection is not installed", allow_module_level=True)

THINGS = ("a rose", "a watermelon")
WRONG = ("a bus", "a wrapped gift")


@pytest.fixture(scope="module")
def collage() -> torch.Tensor:
    """A drawing of each thing, rose left and watermelon right: (1, 3, 64, 64)."""
    pipe = load_pipeline("emoji-two-steps")
    generators = [torch.Generator().manual_seed(0) for _ in THINGS]
    drawn = pipe(list(THINGS), generator=generators, num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    image = torch.ones(1, 3, 64, 64)
    for tile, (left, top) in zip(resize(drawn, [30, 30]), ((2, 8), (33, 28)), strict=True):
        image[0, :, top : top + 30, left : left + 30] = tile
    return image


def test_things_that_are_there_score_above_others_and_have_a_gradient(collage: torch.Tensor) -> None:
    image = collage.clone().requires_grad_()
    right, wrong = (load_reward("detection", present=list(p), weights="emoji-detector") for p in (THINGS, WRONG))
    score = right(image, [""])
    level = float(score.detach())
    assert level > float(wrong(image.detach(), [""])) + 1
    assert level > float(right(torch.ones(1, 3, 64, 64), [""])) + 1
    (gradient,) = torch.autograd.grad(score.sum(), image)
    assert float((gradient[image < 1] != 0).float().mean()) > 0.5  # white is at the end of the range, and clamped
