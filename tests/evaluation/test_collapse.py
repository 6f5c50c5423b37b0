"""The evaluations: what is measured of images, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from draft_core.evaluation.collapse import Change, CollapseRule, EvalRecord, change, eval_record, over_prompts, percent
from draft_core.evaluation.evaluate import Evaluation
from draft_core.evaluation.image_measures import colourfulness, detail, distance
from draft_core.rewards.objective import Objective


def noise_images(count: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_zero_for_the_same_and_counts_shape_more_than_noise() -> None:
    images = noise_images()
    assert torch.equal(distance(images, images), torch.zeros(3))
    noise = 0.1 * torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    shift = torch.full_like(images, float(noise.square().mean().sqrt()))
    assert (distance(images, images + shift) > 1.5 * distance(images, images + noise)).all()
    torch.testing.assert_close(distance(images, images + 0.25), torch.full((3,), 0.25))


def test_colourfulness_is_hasler_and_suesstruncks() -> None:
    """Equation by equation in numpy, as in the paper."""
    images = noise_images()
    expected = []
    for red, green, blue in images.numpy():
        rg, yb = red - green, 0.5 * (red + green) - blue
        spread = math.hypot(np.std(rg), np.std(yb))
        expected.append(spread + 0.3 * math.hypot(np.mean(rg), np.mean(yb)))
    torch.testing.assert_close(colourfulness(images), torch.tensor(expected, dtype=torch.float32))
    assert float(colourfulness(torch.full((1, 3, 8, 8), 0.5))) == 0.0


def test_detail_sees_a_chessboard_and_no_plain_surface() -> None:
    board = torch.zeros(1, 3, 8, 8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1.0
    assert float(detail(board)) == pytest.approx(0.5)
    assert float(detail(torch.full((1, 3, 7, 9), 0.3))) == pytest.approx(0.0, abs=1e-6)


def evaluation(images: torch.Tensor, prompts: int, scores: dict[str, list[float]]) -> Evaluation:
    seeds = tuple(range(len(images) // prompts))
    names = tuple(map(str, range(prompts)))
    return Evaluation(names, seeds, images, {name: torch.tensor(values) for name, values in scores.items()})


def test_an_evaluation_compares_images_of_one_prompt_with_each_other_and_with_the_base() -> None:
    images = noise_images(count=4)
    base = evaluation(images, 2, {"r": [0.0, 0.0, 0.0, 0.0]})
    images = images.clone()
    images[1] = images[0]
    found = eval_record(evaluation(images, 2, {"r": [1.0, 2.0, 3.0, 4.0]}), base, 7)
    assert found.update == 7
    assert found.scores == {"r": [1.0, 2.0, 3.0, 4.0]}
    assert found.diversity[0] == 0.0
    assert found.diversity[1] == pytest.approx(float(distance(images[2:3], images[3:4])))
    assert [drift > 0 for drift in found.drift] == [False, True, False, False]
    single = eval_record(evaluation(images, 4, {"r": [0.0] * 4}), base, 7)
    assert single.diversity == [], "one image a prompt has nothing to differ from"


def test_the_error_is_that_of_the_mean_over_prompts() -> None:
    values = np.random.default_rng(0).normal(size=12).tolist()
    per_prompt = np.reshape(values, (6, 2)).mean(1)
    found = over_prompts(values, 6)
    assert found.mean == pytest.approx(per_prompt.mean())
    assert found.error == pytest.approx(stats.sem(per_prompt))
    assert math.isnan(over_prompts([1.0, 2.0], 1).error)


def test_a_change_is_paired() -> None:
    before = [0.0, 10.0, 20.0]
    found = change(before, [value + 1 for value in before], 3)
    assert (found.mean, found.error) == (1.0, 0.0)
    assert found.believed
    assert not change(before, [3.0, 7.0, 20.0], 3).believed


def record(update: int, **more: Any) -> EvalRecord:
    """Four prompts with one image each; the base scores 0.5 and 5 with spreads of about 0.1 and 1."""
    kept = {
        "trained": [0.4, 0.5, 0.6, 0.5],
        "held": [4.0, 5.0, 6.0, 5.0],
    }
    kept |= {name: [value + more[name] for value in kept[name]] for name in kept if name in more}
    diversity, colour, detail = (
        [factor * more.get(name, 1.0) for factor in (0.20, 0.22, 0.18, 0.21)]
        for name in ("diversity", "colour", "detail")
    )
    return EvalRecord(update, 4, kept, diversity, [0.0] * 4, colour, detail, divisors=more.get("divisors", {}))


BASE = record(0)
TRAINED = {"trained": 1.0}


@pytest.mark.parametrize(
    ("seen", "lost", "collapsed"),
    [
        (record(1, trained=0.3), [], False),
        (record(1, trained=0.3, held=-1.0), [], False),
        (record(1, trained=0.3, held=-2.0), ["held fell from 5 to 3 (-40 %)"], True),
        (record(1, trained=-0.3, held=-2.0), ["held fell from 5 to 3 (-40 %)"], False),
        (record(1, trained=0.3, diversity=0.7), [], False),
        (record(1, trained=0.3, diversity=0.3), ["diversity fell from 0.2025 to 0.06075 (-70 %)"], True),
        (
            record(1, trained=0.3, held=-3.0, diversity=0.1),
            ["held fell from 5 to 2 (-60 %)", "diversity fell from 0.2025 to 0.02025 (-90 %)"],
            True,
        ),
        (record(1, trained=-9.0), [], False),
    ],
)
def test_a_collapse_is_a_gain_that_others_pay_for(seen: EvalRecord, lost: list[str], collapsed: bool) -> None:
    verdict = CollapseRule(TRAINED, 2.0).verdict(BASE, seen)
    assert list(verdict.lost) == lost
    assert verdict.collapsed is collapsed


@pytest.mark.parametrize(
    ("changes", "fell"),
    [
        ({"trained": 0.3}, []),
        ({"trained": 0.3, "diversity": 0.77}, ["diversity fell from 0.2025 to 0.1559 (-23 %)"]),
        ({"trained": -0.1, "held": -0.5}, ["trained fell from 0.5 to 0.4 (-20 %)", "held fell from 5 to 4.5 (-10 %)"]),
        (
            {"trained": 0.3, "held": -4.0, "colour": 0.1, "detail": 0.4},
            [
                "held fell from 5 to 1 (-80 %)",
                "colour fell from 0.2025 to 0.02025 (-90 %)",
                "detail fell from 0.2025 to 0.081 (-60 %)",
            ],
        ),
    ],
)
def test_everything_that_fell_beyond_chance_is_named_with_its_percentage(
    changes: dict[str, float], fell: list[str]
) -> None:
    assert list(CollapseRule(TRAINED, 2.0).verdict(BASE, record(1, **changes)).fell) == fell


def test_everything_that_rose_beyond_chance_is_named_too_trained_or_not() -> None:
    verdict = CollapseRule(TRAINED, 2.0).verdict(BASE, record(1, trained=0.3, held=0.5, detail=1.2, colour=0.4))
    assert verdict.rose == (
        "trained rose from 0.5 to 0.8 (+60 %)",
        "held rose from 5 to 5.5 (+10 %)",
        "detail rose from 0.2025 to 0.243 (+20 %)",
    )
    assert verdict.fell == ("colour fell from 0.2025 to 0.081 (-60 %)",)
    assert CollapseRule({"trained": -1.0}, 2.0).verdict(BASE, record(1, trained=-0.3)).rose == (
        "trained fell from 0.5 to 0.2 (-60 %)",
    )
    unchanged = CollapseRule(TRAINED, 2.0).verdict(BASE, replace(BASE, update=1))
    assert (unchanged.rose, unchanged.fell) == ((), ())


@pytest.mark.parametrize(
    ("before", "by", "expected"),
    [
        (Change(-2.0, 0.1), 0.5, 25.0),
        (Change(0.8, 0.1), -0.2, -25.0),
        (Change(0.8, 0.4), -0.2, None),  # as good as zero
        (Change(0.8, 0.1), -0.9, None),  # across zero
        (Change(0.0, 0.0), 0.3, None),
    ],
)
def test_a_percentage_is_given_of_what_is_not_zero(before: Change, by: float, expected: float | None) -> None:
    found = percent(before, Change(by, 0.01))
    assert found is None if expected is None else found == pytest.approx(expected)


def test_what_fell_within_chance_is_not_named() -> None:
    seen = replace(BASE, update=1, scores={**BASE.scores, "held": [4.0, 5.4, 5.5, 4.9]})
    assert CollapseRule(TRAINED, 2.0).verdict(BASE, seen).fell == ()


def test_a_score_that_is_minimised_is_named_when_it_rose() -> None:
    rule = CollapseRule({"trained": -1.0}, 2.0)
    assert rule.verdict(BASE, record(1, trained=-0.3)).fell == ()
    assert rule.verdict(BASE, record(1, trained=0.3)).fell == ("trained rose from 0.5 to 0.8 (+60 %)",)


def test_numbers_that_are_not_finite_are_judged_by_nobody_and_said() -> None:
    seen = replace(BASE, update=1, scores={**BASE.scores, "held": [4.0, math.nan, 6.0, math.inf]})
    assert CollapseRule(TRAINED, 2.0).verdict(BASE, seen).unjudged == (
        "held cannot be judged: 2 of its 8 scores are not finite",
    )
    broken = replace(BASE, update=2, scores={**BASE.scores, "trained": [math.nan] * 4})
    assert CollapseRule(TRAINED, 2.0).best([BASE, broken, record(3, trained=0.1)]).update == 3


@pytest.mark.parametrize(
    ("prompts", "images", "scores", "why"),
    [
        (1, 2, {"trained", "held"}, "one prompt gives no error of a mean"),
        (2, 2, {"trained", "held"}, "2 prompts are too few to tell a change from chance: evaluate 5 or more"),
        (5, 1, {"trained"}, "no score is held out and diversity is not measured"),
        (5, 2, {"trained"}, None),
        (5, 1, {"trained", "held"}, None),
    ],
)
def test_where_no_evaluation_can_count_as_a_collapse_it_is_said(
    prompts: int, images: int, scores: set[str], why: str | None
) -> None:
    said = CollapseRule(TRAINED, 2.0).blindness(prompts=prompts, images_per_prompt=images, scores=scores)
    assert (said is None) if why is None else (said is not None and why in said)


def two_rewards(update: int, jpeg: float, other: float, **divisors: float) -> EvalRecord:
    """Both scores alike for each of four images, but for a spread that is the same in every evaluation."""
    scores = {
        name: [mean + spread for spread in (-0.02, 0.0, 0.01, 0.01)]
        for name, mean in (("jpeg", jpeg), ("other", other))
    }
    return EvalRecord(update, 4, scores, [], [0.0] * 4, [0.1] * 4, [0.1] * 4, divisors=divisors)


def test_the_best_evaluation_counts_no_score_above_its_cap() -> None:
    records = [two_rewards(0, -1.7, 0.4), two_rewards(5, -1.4, 0.8), two_rewards(10, -1.0, 0.5)]
    weights = {"jpeg": 1.0, "other": 1.0}
    assert CollapseRule(weights, 2.0).best(records).update == 10
    assert CollapseRule(weights, 2.0, caps={"jpeg": -1.4}).best(records).update == 5


def test_the_cap_is_that_of_the_objective() -> None:
    seen, caps, weights = two_rewards(5, -1.4, 0.8), {"jpeg": -1.405}, {"jpeg": 2.0, "other": -0.5}
    rewards = {name: torch.nn.Identity() for name in weights}
    each = {name: torch.tensor(values) for name, values in seen.scores.items()}
    for divisors in ({}, {"jpeg": 0.3, "other": 4.0}):
        expected = Objective(rewards, weights, caps).total(each, divisors)
        found = CollapseRule(weights, 2.0, caps=caps).total(seen, divisors)
        torch.testing.assert_close(torch.tensor(found), expected)


def test_the_best_evaluation_weighs_rewards_as_training_divided_them() -> None:
    """`other` has a hundredth of the unit of `jpeg`, so that without a divisor it hardly counts."""
    first, second = two_rewards(5, -1.4, 0.008), two_rewards(10, -1.3, 0.004)
    rule = CollapseRule({"jpeg": 1.0, "other": 1.0}, 2.0)
    assert rule.best([two_rewards(0, -1.7, 0.001), first, second]).update == 10
    divided = [replace(each, divisors={"jpeg": 0.1, "other": 0.001}) for each in (first, second)]
    assert rule.best([two_rewards(0, -1.7, 0.001), *divided]).update == 5
    later = replace(two_rewards(15, -1.6, 0.001), divisors={"jpeg": 0.1, "other": 1.0})
    assert rule.best([two_rewards(0, -1.7, 0.001), *divided, later]).update == 5, "what was chosen stays"


def test_the_best_evaluation_has_the_highest_reward_among_those_that_lost_nothing() -> None:
    records = [BASE, record(5, trained=0.2), record(10, trained=0.4, held=-1.0), record(15, trained=0.9, held=-3.0)]
    assert CollapseRule(TRAINED, 2.0).best(records).update == 10
    assert CollapseRule(TRAINED, 1.0).best(records).update == 5
    assert CollapseRule(TRAINED, 2.0).best([BASE, record(5, trained=0.2, held=-4.0)]).update == 0


def test_a_single_image_is_no_evidence() -> None:
    base, seen = (
        EvalRecord(update, 1, {"held": [score]}, [], [0.0], [0.0], [0.0]) for update, score in ((0, 5.0), (1, -5.0))
    )
    verdict = CollapseRule({}, 2.0).verdict(base, seen)
    assert (verdict.lost, verdict.fell) == ((), ())
    assert verdict.unjudged == ("nothing can be judged: one prompt gives no error of a mean",)


def test_a_collapse_ends_a_run_that_asks_for_it() -> None:
    verdict = CollapseRule(TRAINED, 2.0).verdict(BASE, record(1, trained=0.3, held=-2.0))
    assert CollapseRule(TRAINED, 2.0, "stop").ends(verdict)
    assert not CollapseRule(TRAINED, 2.0, "warn").ends(verdict)
    lost_alone = CollapseRule(TRAINED, 2.0).verdict(BASE, record(1, trained=-0.3, held=-2.0))
    assert not CollapseRule(TRAINED, 2.0, "stop").ends(lost_alone)
