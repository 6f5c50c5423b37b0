"""What rewards with a network share: the check of their input, and the memory for prompts."""

from __future__ import annotations

import pytest
import torch

from draft_core.errors import RewardError
from draft_core.rewards.inputs import TextFeatureCache, checked_images

CPU = torch.device("cpu")


class Encoder:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompt: str) -> torch.Tensor:
        self.asked.append(prompt)
        return torch.full((2,), float(len(prompt)), requires_grad=torch.is_grad_enabled())


def test_a_prompt_is_encoded_once() -> None:
    memory, encode = TextFeatureCache(), Encoder()
    first = memory(["a", "bb", "a"], encode, CPU)
    again = memory(["bb", "a"], encode, CPU)
    assert first.tolist() == [[1, 1], [2, 2], [1, 1]]
    assert again.tolist() == [[2, 2], [1, 1]]
    assert encode.asked == ["a", "bb"]


def test_the_prompts_used_longest_ago_are_forgotten() -> None:
    memory, encode = TextFeatureCache(limit=2), Encoder()
    memory(["a", "bb"], encode, CPU)
    memory(["a", "ccc"], encode, CPU)
    memory(["a", "bb"], encode, CPU)
    assert encode.asked == ["a", "bb", "ccc", "bb"]


def test_a_batch_may_hold_more_prompts_than_are_remembered() -> None:
    memory, encode = TextFeatureCache(limit=1), Encoder()
    assert memory(["a", "bb", "ccc"], encode, CPU)[:, 0].tolist() == [1, 2, 3]
    memory(["ccc"], encode, CPU)
    assert encode.asked == ["a", "bb", "ccc"]


def test_features_carry_no_gradient_and_survive_inference_mode() -> None:
    memory, encode = TextFeatureCache(), Encoder()
    with torch.inference_mode():
        memory(["a"], encode, CPU)
    images = torch.ones(1, 2, requires_grad=True)
    features = memory(["a"], encode, CPU)
    assert not features.requires_grad
    (features * images).sum().backward()
    assert images.grad is not None


def test_images_come_back_in_float32_with_their_gradient() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.bfloat16, requires_grad=True)
    checked = checked_images(images, ["", ""], where="reward 'x'")
    assert checked.dtype == torch.float32
    assert checked.requires_grad


@pytest.mark.parametrize("levels", [[-0.1, 1.1], [0.0, 0.0], [float("nan"), 0.5], [float("inf"), 0.5]])
def test_levels_about_0_to_1_and_what_is_not_finite_pass_as_they_are(levels: list[float]) -> None:
    """One broken image must not cost its batch mates their scores; the trainer finds it."""
    images = torch.tensor(levels).repeat(24).view(1, 3, 4, 4)
    assert torch.equal(checked_images(images, [""], where="reward 'x'").nan_to_num(), images.nan_to_num())


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.zeros(3, 4, 4), ["a"] * 3, r"reward 'x': images are torch.float32 of shape \(3, 4, 4\); pass RGB"),
        (torch.zeros(1, 4, 4, 4), ["a"], r"images are torch.float32 of shape \(1, 4, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ["a"], "images are torch.uint8"),
        (torch.full((1, 3, 4, 4), 255.0), ["a"], r"reward 'x': the images' levels run from 255 to 255; pass levels in"),
        (torch.linspace(-1, 1, 48).view(1, 3, 4, 4), ["a"], "the images' levels run from -1 to 1"),
        (torch.zeros(2, 3, 4, 4), ["a"], r"reward 'x': there are 1 prompts for 2 images; pass one for each image\."),
    ],
)
def test_other_input_is_refused(images: torch.Tensor, prompts: list[str], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        checked_images(images, prompts, where="reward 'x'")
