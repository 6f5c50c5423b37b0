"""A function of TRL's kind as a reward: what it is given, what is refused, and the reward contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from draft_core import Objective, PromptRow
from draft_core.errors import RewardError
from draft_core.prompt_rows import Column
from draft_core.rewards import from_reward_fn

PROMPTS = ["a cat", "a dog"]


def brightness(images: torch.Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[torch.Tensor, Any]:
    return images.mean(dim=(1, 2, 3)), {"kept": "nowhere"}


def batch(*, gradient: bool = True) -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(gradient)


def test_it_gives_the_functions_rewards_with_their_gradient() -> None:
    images = batch()
    reward = from_reward_fn(brightness)
    for _ in range(2):
        scores = reward(images, PROMPTS)
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        torch.testing.assert_close(scores, images.mean(dim=(1, 2, 3)))
        torch.testing.assert_close(gradient, torch.full_like(images, 1 / 192))
    assert Objective({"bright": reward})(images, PROMPTS).total.requires_grad


def test_the_function_is_called_as_trl_calls_it() -> None:
    calls = []

    def noted(*given: Any) -> Any:
        calls.append(given)
        return given[0].mean(dim=(1, 2, 3)).double(), {}

    assert from_reward_fn(noted)(batch(), PROMPTS).dtype == torch.float32
    from_reward_fn(noted, metadata={"a cat": {"legs": 4}, "a dog": {}})(batch(), PROMPTS)
    rows = [PromptRow("a cat", {"legs": "4"}), PromptRow("a dog", {"legs": "3"})]
    objective = Objective({"noted": from_reward_fn(noted)}, columns={"noted": {"legs": Column("legs", "number")}})
    objective(batch(), rows)
    assert [call[1:] for call in calls] == [
        (("a cat", "a dog"), ({}, {})),
        (("a cat", "a dog"), ({"legs": 4}, {})),
        (("a cat", "a dog"), ({"legs": 4.0}, {"legs": 3.0})),
    ]


def test_numbers_without_a_gradient_are_taken_where_that_is_said() -> None:
    def sizes(images: torch.Tensor, *_: Any) -> Any:
        assert not torch.is_grad_enabled()
        return [float(image.sum()) for image in images.detach()]

    scores = from_reward_fn(sizes, differentiable=False)(batch(), PROMPTS)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, batch(gradient=False).sum(dim=(1, 2, 3)))
    with torch.no_grad():  # as evaluations do, which ask for no gradient
        from_reward_fn(lambda images, *_: images.detach().mean(dim=(1, 2, 3)))(batch(), PROMPTS)


WEIGHT = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            lambda images, *_: (images.mean(), {}),
            "shape () for 2 images; return one reward for each image, of shape (2,)",
        ),
        (lambda images, *_: images.mean(dim=(2, 3)), "shape (2, 3) for 2 images"),
        (lambda images, *_: images.mean(dim=(1, 2, 3)) / torch.tensor([1, 0]), "its reward of image 1 is inf"),
        (lambda images, *_: ({"score": 1}, {}), "it returned dict, not numbers"),
        (lambda images, *_: images.detach().mean(dim=(1, 2, 3)), "no gradient leads from its rewards to the images"),
        (lambda images, *_: WEIGHT * images.detach().mean(dim=(1, 2, 3)), "no gradient leads from its rewards"),
    ],
)
def test_what_is_no_reward_is_refused(function: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(RewardError) as caught:
        from_reward_fn(function)(batch(), PROMPTS)
    assert sentence in str(caught.value)
    assert "reward function '<lambda>'" in str(caught.value)


def test_a_prompt_without_metadata_is_refused() -> None:
    with pytest.raises(RewardError, match="there is no metadata for the prompt 'a dog'; add it"):
        from_reward_fn(brightness, metadata={"a cat": {}})(batch(), PROMPTS)
