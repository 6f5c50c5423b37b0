"""Plans and re-noisings that say nothing a run could do are refused where they are written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from draft_core.errors import SamplerError
from draft_core.plan import Renoising, StepPlan


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": "4"}, "StepPlan.steps: '4' is not a whole number"),
        ({"steps": 4.0}, "StepPlan.steps: 4.0 is not a whole number"),
        ({"steps": True, "grad_steps": {0}}, "StepPlan.steps: True is not a whole number"),
        ({"grad_steps": {0.5}}, "StepPlan.grad_steps: 0.5 is not a whole number"),
        ({"grad_steps": {"1"}}, "StepPlan.grad_steps: '1' is not a whole number"),
        ({"grad_steps": 3}, "3 is no set of steps"),
        ({"stop_at": 3.5}, "StepPlan.stop_at: 3.5 is not a whole number"),
        ({"prefix": 1.5}, "StepPlan.prefix: 1.5 is not a whole number"),
        ({"prefix": 2, "keep_trajectory": True}, "StepPlan.prefix: .* leave out prefix or keep_trajectory"),
        ({"stop_at": 1}, "record only steps that are reached"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_run_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SamplerError, match=sentence):
        StepPlan(**{"steps": 4, "grad_steps": {3}, **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"copies": 1.5}, "Renoising.copies: 1.5 is not a whole number"),
        ({"copies": True}, "Renoising.copies: True is not a whole number"),
        ({"max_drift": -1, "step_each": True}, "max_drift is -1; give a number of 0 or more"),
        ({"max_drift": math.nan, "step_each": True}, "max_drift is nan"),
        ({"max_drift": "0.1", "step_each": True}, "max_drift is '0.1'"),
        ({"max_drift": 0.1}, "there are none; add step_each=True"),
    ],
    ids=str,
)
def test_a_renoising_that_cannot_be_made_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SamplerError, match=sentence):
        Renoising(**{"copies": 2, **fields})


def test_what_can_be_run_is_kept_as_it_is() -> None:
    assert StepPlan(4, [1, 2]).grad_steps == frozenset({1, 2})  # type: ignore[arg-type]
    assert Renoising(copies=2, step_each=True, max_drift=0.0).max_drift == 0.0
