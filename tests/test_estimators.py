"""Plans as data: what each method says, and what no plan may say."""

from __future__ import annotations

from random import Random

import pytest

from draft_core import Draft, DraftK, DraftLV, StepPlan
from draft_core.errors import RecipeError, SamplerError
from draft_core.estimators import ESTIMATORS

RNG = Random(0)


def test_each_method_says_where_the_gradient_flows() -> None:
    assert Draft().plan(4, RNG) == StepPlan(4, frozenset({0, 1, 2, 3}))
    assert DraftK(k=2).plan(4, RNG) == StepPlan(4, frozenset({2, 3}))
    assert DraftLV(resamples=3).plan(4, RNG) == StepPlan(4, frozenset({3}), resamples=3)


def test_the_methods_reduce_to_each_other() -> None:
    assert DraftK(k=4).plan(4, RNG) == Draft().plan(4, RNG)
    assert DraftLV(resamples=0).plan(4, RNG) == DraftK(k=1).plan(4, RNG)


def test_k_larger_than_t_is_refused_with_both_numbers() -> None:
    with pytest.raises(RecipeError) as caught:
        DraftK(k=30).plan(20, RNG)
    assert str(caught.value) == (
        "estimator.k: k = 30 is larger than the number of sampler steps, 20; "
        "use k <= 20, or raise model.num_inference_steps."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0, "graded": frozenset()}, "at least one step"),
        ({"steps": 2, "graded": frozenset({2})}, r"graded steps \[2\] are outside 0..1"),
        ({"steps": 2, "graded": frozenset({1}), "resamples": -1}, "resamples is -1"),
    ],
)
def test_an_impossible_plan_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SamplerError, match=message):
        StepPlan(**arguments)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_estimator_is_listed_by_its_kind_and_names_its_paper(kind: str) -> None:
    cls = ESTIMATORS[kind]
    assert cls().kind == kind
    assert "Clark et al. 2024" in (cls.__doc__ or "")
