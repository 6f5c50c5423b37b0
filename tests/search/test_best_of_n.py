"""The best of n images, against `sample`'s images and scores that are taken by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import draft_core
from draft_core import DifferentiableSampler, Objective, best_of_n
from draft_core.errors import DraftError, RewardError
from tests.support.tiny import Brightness, ClockConfig, Redness, RednessConfig

PROMPTS = ["a red dog", "a cat"]


def sampler_of(catalog: Any) -> DifferentiableSampler:
    spec = catalog.pretrained["tiny"].spec
    return DifferentiableSampler(draft_core.load_pipeline("tiny", catalog=catalog), **spec.call)


def both() -> Objective:
    rewards = {"redness": Redness(RednessConfig()), "brightness": Brightness(ClockConfig())}
    return Objective(rewards, weights={"redness": 2.0, "brightness": -1.0})


def test_the_images_are_those_of_sample_and_the_best_are_kept_in_order(catalog: Any) -> None:
    expected = draft_core.sample("tiny", PROMPTS, images_per_prompt=5, seed=3, catalog=catalog)[0]
    counted: list[tuple[int, int]] = []
    found = best_of_n(
        sampler_of(catalog),
        both(),
        PROMPTS,
        5,
        keep=2,
        seed=3,
        batch_size=5,
        progress=lambda done, total: counted.append((done, total)),
    )
    red, green, blue = expected.mean((-2, -1)).unbind(-1)
    redness, brightness = red - (green + blue) / 2, (red + green + blue) / 3
    torch.testing.assert_close(found.scores["redness"], redness)
    torch.testing.assert_close(found.scores["brightness"], brightness)
    totals = 2 * redness - brightness
    torch.testing.assert_close(found.totals, totals)
    for place in range(2):
        order = sorted(range(5), key=lambda number: -float(totals[place, number]))
        assert found.chosen[place].tolist() == order[:2]
        assert found.seeds[place] == (3 + order[0], 3 + order[1])
        assert torch.equal(found.images[place], expected[place, order[:2]])
        assert torch.equal(found.first[place], expected[place, 0])
        torch.testing.assert_close(found.best["redness"][place], redness[place, order[:2]])
    assert found.tried == (3, 4, 5, 6, 7)
    assert counted == [(5, 10), (10, 10)]


def test_the_best_image_is_drawn_again_from_its_seed(catalog: Any) -> None:
    found = best_of_n(sampler_of(catalog), both(), ["a cat"], 4, batch_size=1)
    again = draft_core.sample("tiny", ["a cat"], images_per_prompt=1, seed=found.seeds[0][0], catalog=catalog)
    assert torch.equal(again[0, 0], found.images[0])


class Unscored(Redness):
    """Redness that is NaN for the images of some calls."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__(RednessConfig())
        self.calls, self.count = calls, 0

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        self.count += 1
        scores = super().forward(images, prompts)
        return scores * math.nan if self.count in self.calls else scores


def test_an_image_without_a_score_is_never_the_best(catalog: Any) -> None:
    sampler = sampler_of(catalog)
    first = best_of_n(sampler, Objective({"redness": Unscored(set())}), ["a cat"], 4, batch_size=1)
    best = int(first.chosen)
    second = best_of_n(sampler, Objective({"redness": Unscored({best + 1})}), ["a cat"], 4, keep=3, batch_size=1)
    assert best not in second.chosen[0].tolist()
    with pytest.raises(RewardError, match=r"1 of 4 images of 'a cat' have the score NaN"):
        best_of_n(sampler, Objective({"redness": Unscored({1})}), ["a cat"], 4, keep=4, batch_size=1)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"n": 0}, "best_of_n: n: 0 is not a whole number from 1 on"),
        ({"n": 2.5}, "best_of_n: n: 2.5 is not a whole number from 1 on"),
        ({"keep": 5}, "best_of_n: keep: it keeps 5 of 4 images; keep 4 or fewer"),
        ({"batch_size": 0}, "best_of_n: batch_size: 0 is not a whole number from 1 on"),
        ({"seed": -1}, "best_of_n: seed: -1 is no seed; give a whole number from 0 on"),
        ({"seed": 2**64 - 3}, "is no seed"),
        ({"prompts": "cat"}, "the prompts are one text"),
        ({"rewards": Objective({})}, "best_of_n: there is no reward; give one with a weight"),
        ({"rewards": Objective({"a": Redness(RednessConfig())}, {"a": 0.0})}, "every reward has weight 0"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_drawn(how: dict[str, Any], sentence: str) -> None:
    given = {"rewards": both(), "prompts": ["a cat"], "n": 4, **how}
    with pytest.raises(DraftError, match=sentence):
        best_of_n(None, **given)  # type: ignore[arg-type]
