"""A surrogate alone: it learns known functions on their own scale, and goes on from its state in every bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from draft_core.errors import DraftError
from draft_core.surrogates.fitting import rank_correlation
from draft_core.surrogates.settings import SurrogateSettings
from draft_core.surrogates.surrogate import IMAGE_SIDE, Scored, Surrogate

CPU = torch.device("cpu")


def surrogate(*, within_prompt: bool = False, **settings: Any) -> Surrogate:
    small = {"width": 8, "batch_size": 32, "warmup_fits": 60, "learning_rate": 3e-3}
    return Surrogate(SurrogateSettings(**{**small, **settings}), seed=0, within_prompt=within_prompt)


def wordless(prompts: Sequence[str]) -> None:
    """Prompts have no features."""


def roughness(inputs: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbours, in thousands of a unit that no network would guess."""
    return 7000 * (inputs[..., 1:] - inputs[..., :-1]).square().mean((1, 2, 3)) - 50_000


def rough(count: int, seed: int) -> Scored:
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, 8, 8, generator=draws) * torch.rand(count, 1, 1, 1, generator=draws)
    return Scored(inputs, [f"prompt {place % 8}" for place in range(count)], roughness(inputs).tolist())


@pytest.mark.parametrize("loss", ["ranking", "regression"])
@pytest.mark.parametrize("within_prompt", [False, True])
def test_it_learns_to_rank_on_the_scale_of_the_reward(loss: str, within_prompt: bool) -> None:
    one, held_out = surrogate(loss=loss, within_prompt=within_prompt), rough(64, 1)
    one.begin(rough(128, 0), wordless, CPU)
    with torch.no_grad():
        guesses = one.score(held_out.inputs, None)
    assert rank_correlation(guesses.tolist(), held_out.scores) > 0.85
    truth = torch.tensor(held_out.scores)
    assert abs(float(guesses.mean() - truth.mean())) < 0.2 * float(truth.std())
    assert float((guesses - truth).square().mean()) < 0.3 * float(truth.var())


def test_its_gradient_raises_the_reward() -> None:
    one = surrogate()
    one.begin(rough(128, 0), wordless, CPU)
    inputs = rough(32, 2).inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(one.score(inputs, None).sum(), inputs)
    step = 0.1 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert float((roughness(inputs.detach() + step) > roughness(inputs.detach())).float().mean()) > 0.9
    assert one.network is not None
    assert all(weight.grad is None and not weight.requires_grad for weight in one.network.parameters())


def test_it_sees_prompts_where_they_have_features() -> None:
    """The score is the prompt's alone, so that a network which does not see it can rank nothing."""
    rows = rough(256, 0)
    value = {f"prompt {number}": float((5 * number) % 8) for number in range(8)}
    of_prompts = Scored(
        torch.randn(256, 4, 8, 8, generator=torch.Generator().manual_seed(4)),
        rows.prompts,
        [value[prompt] for prompt in rows.prompts],
    )

    def features(prompts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([int(prompt.split()[1]) for prompt in prompts]), 8).float()

    one = surrogate()
    one.begin(of_prompts, features, CPU)
    with torch.no_grad():
        guesses = one.score(rough(64, 3).inputs, features(rough(64, 3).prompts))
    assert rank_correlation(guesses.tolist(), [value[prompt] for prompt in rough(64, 3).prompts]) > 0.8


@pytest.mark.parametrize("space", ["latent", "image"])
def test_it_goes_on_from_its_state_in_every_bit(space: str) -> None:
    rows = [rough(32, seed) for seed in range(3)]
    settings = {"space": space, "warmup_fits": 4, "fits": 3, "buffer": 40, "batch_size": 16}
    one = surrogate(**settings)
    if space == "image":
        rows = [Scored(one.remembered(row.inputs[:, :3]), row.prompts, row.scores) for row in rows]
        assert rows[0].inputs.dtype == torch.uint8
    one.begin(rows[0], wordless, CPU)
    one.learn(rows[1], wordless)
    assert len(one.rows.scores) == 40
    assert one.rows.scores[-1] == rows[1].scores[-1]
    two = surrogate(**settings)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for each in (one, two):
        each.learn(rows[2], wordless)
    assert one.network is not None
    assert two.network is not None
    for mine, other in zip(one.network.state_dict().values(), two.network.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert (one.slope, one.offset, one.seen) == (two.slope, two.offset, two.seen)


def test_what_cannot_be_compared_is_known() -> None:
    inputs = torch.zeros(4, 4, 8, 8)
    assert surrogate().can_learn_from(Scored(inputs, ["a", "a", "b", "b"], [1.0, 1.0, 2.0, 2.0]))
    assert not surrogate(within_prompt=True).can_learn_from(Scored(inputs, ["a", "a", "b", "b"], [1.0, 1.0, 2.0, 2.0]))
    assert not surrogate().can_learn_from(Scored(inputs, ["a"] * 4, [1.0] * 4))


def test_large_images_are_seen_small() -> None:
    images = torch.rand(2, 3, 300, 2 * IMAGE_SIDE)
    one = surrogate(space="image")
    seen = one.input_of(images, None)
    assert seen.shape == (2, 3, 150, IMAGE_SIDE)
    assert seen.mean().item() == pytest.approx(images.mean().item(), abs=1e-4)
    small = torch.rand(2, 3, 64, 64)
    assert torch.equal(one.input_of(small, None), small)


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(DraftError, match="SurrogateSettings: warmup"):
        SurrogateSettings(warmup=2)
    with pytest.raises(DraftError, match="SurrogateSettings: space"):
        SurrogateSettings(space="pixels")
