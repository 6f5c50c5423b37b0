"""Plans as data: what each method says, and what no plan may say."""

from __future__ import annotations

import re
from random import Random

import pytest

from draft_core import AlignProp, Draft, DraftK, DraftLV, DRTune, FlowBPSparse, PrefixReuse, Refl, StepList, StepPlan
from draft_core.errors import RecipeError, SamplerError
from draft_core.plan import Renoising
from draft_core.registry.config import DirectConfig, MethodConfig
from draft_core.registry.methods import BUILT_IN
from draft_core.registry.specs import MethodSpec

RNG = Random(0)


def test_each_method_says_where_the_gradient_flows() -> None:
    assert Draft().plan(4, RNG) == StepPlan(4, frozenset({0, 1, 2, 3}))
    assert DraftK(k=2).plan(4, RNG) == StepPlan(4, frozenset({2, 3}))
    assert DraftLV(resamples=3).plan(4, RNG) == StepPlan(4, frozenset({3}))
    assert DraftLV(resamples=3).renoising() == Renoising(copies=3)


def test_the_methods_reduce_to_each_other() -> None:
    assert DraftK(k=4).plan(4, RNG) == Draft().plan(4, RNG)
    assert DraftLV(resamples=0).plan(4, RNG) == DraftK(k=1).plan(4, RNG)


def test_k_larger_than_t_is_refused_with_both_numbers() -> None:
    with pytest.raises(RecipeError) as caught:
        DraftK(k=30).plan(20, RNG)
    assert str(caught.value) == (
        "method.k: k = 30 is larger than the number of sampler steps, 20; "
        "use k <= 20, or raise model.num_inference_steps."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0, "grad_steps": frozenset()}, "at least one step"),
        ({"steps": 2, "grad_steps": frozenset({2})}, r"grad_steps steps \[2\] are outside 0..1"),
        ({"steps": 2, "grad_steps": frozenset({1}), "stop_at": 2}, r"stop_at steps \[2\] are outside"),
        (
            {"steps": 3, "grad_steps": frozenset({2}), "stop_at": 1},
            "leaves the chain at step 1, before the grad step 2",
        ),
    ],
)
def test_an_impossible_plan_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SamplerError, match=message):
        StepPlan(**arguments)


@pytest.mark.parametrize("spec", BUILT_IN, ids=lambda spec: spec.kind)
def test_every_method_names_its_source(spec: MethodSpec) -> None:
    assert re.search(r"arXiv \d{4}\.\d{5}|Clark et al\. 2024|No publication|for experiments", spec.config.__doc__ or "")


@pytest.mark.parametrize(
    "spec", [spec for spec in BUILT_IN if issubclass(spec.config, DirectConfig)], ids=lambda spec: spec.kind
)
def test_every_method_with_a_plan_plans_within_the_chain(spec: MethodSpec) -> None:
    for seed in range(20):
        plan = spec.config().plan(20, Random(seed))
        assert plan == spec.config().plan(20, Random(seed)), "the random number source alone decides"
        assert plan.grad_steps
        assert max(plan.grad_steps) <= plan.last < 20


def test_refl_leaves_the_chain_at_one_of_the_late_steps() -> None:
    plans = [Refl(last=3).plan(10, Random(seed)) for seed in range(50)]
    assert {plan.stop_at for plan in plans} == {7, 8, 9}
    assert all(plan.grad_steps == {plan.stop_at} for plan in plans)


def test_alignprop_with_a_fixed_k_is_draft_k() -> None:
    assert AlignProp(k_min=3, k_max=3).plan(10, RNG) == DraftK(k=3).plan(10, RNG)
    drawn = {len(AlignProp().plan(4, Random(seed)).grad_steps) for seed in range(50)}
    assert drawn == {1, 2, 3, 4}


def test_drtune_spreads_its_steps_and_detaches_their_inputs() -> None:
    for seed in range(50):
        plan = DRTune(k=3, last=4).plan(12, Random(seed))
        gaps = {
            later - earlier
            for earlier, later in zip(sorted(plan.grad_steps), sorted(plan.grad_steps)[1:], strict=False)
        }
        assert plan.detach_input
        assert len(plan.grad_steps) == 3
        assert plan.stop_at is not None
        assert 8 <= plan.stop_at <= 11
        assert gaps == {(plan.stop_at + 1) // 3}


def test_a_step_list_that_equals_a_range_is_draft_k() -> None:
    assert StepList(steps=(-1, -2)).plan(6, RNG) == DraftK(k=2).plan(6, RNG)
    assert StepList(steps=(0, 5)).plan(6, RNG).grad_steps == {0, 5}


def test_prefix_reuse_of_one_update_reduces_to_draft_1() -> None:
    one = PrefixReuse(updates=1).plan(6, RNG)
    assert one == DraftK(k=1).plan(6, RNG)
    assert PrefixReuse(updates=1).renoising().copies == 0
    assert PrefixReuse(updates=4).plan(6, RNG) == StepPlan(6, frozenset({5}))
    assert PrefixReuse(updates=4).renoising() == Renoising(copies=3, step_each=True)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Refl(last=9), "method.last: last = 9 is larger"),
        (AlignProp(k_max=9), "method.k_max: k_max = 9 is larger"),
        (AlignProp(k_min=3, k_max=2), "k_min = 3 exceeds k_max = 2"),
        (DRTune(k=3, last=3), "method.k: k = 3 is larger than the number of sampler steps up to the earliest stop, 2"),
        (FlowBPSparse(k=5), "method.k: k = 5 is larger"),
        (StepList(steps=(4,)), "step 4 is outside a chain of 4 steps; use 0 to 3, or -4 to -1"),
    ],
)
def test_what_does_not_fit_the_chain_is_refused_by_field(method: MethodConfig, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        method.plan(4, RNG)
