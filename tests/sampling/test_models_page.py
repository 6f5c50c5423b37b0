"""docs/models.md says what the tests measure: it has their rows, and its verdicts are those that they demand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from draft_core.adapters.lora import ATTENTION
from draft_core.sampling.noise_levels import Gaussian, step_gaussian
from tests.support.families import FAMILIES
from tests.support.gaussians import TORCHSDE, gaussian_verdict, scheduler_names
from tests.support.models_table import MEASURED, PAGE, family_facts, read_tables, schedule_facts
from tests.support.schedules import SCHEDULES

REMEDY = "run `python -m tests.support.models_table`"
FAMILY_ROWS, _, SCHEDULE_ROWS, *_ = read_tables(PAGE.read_text())


def facts(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{column: cell for column, cell in row.items() if column not in MEASURED} for row in rows]


def at_most(cell: str, bound: float) -> bool:
    return cell == "identical" or (re.fullmatch(r"\de-\d\d", cell) is not None and float(cell) <= bound)


def test_the_page_has_the_families_of_the_tests() -> None:
    if any(family.missing for family in FAMILIES):
        pytest.skip("an older diffusers lacks some of them")
    assert facts(FAMILY_ROWS) == [family_facts(family) for family in FAMILIES], REMEDY


def test_the_page_has_the_schedulers_of_the_tests() -> None:
    assert facts(SCHEDULE_ROWS) == [schedule_facts(schedule) for schedule in SCHEDULES], REMEDY


def test_the_verdicts_of_the_page_are_those_that_the_tests_demand() -> None:
    for row in [*FAMILY_ROWS, *SCHEDULE_ROWS]:
        assert row["samples"] == "identical"
        assert at_most(row["gradient"], 1e-12)
    for row, schedule in zip(SCHEDULE_ROWS, SCHEDULES, strict=True):
        assert at_most(row["posterior mean"], 1e-4) if schedule.level else row["posterior mean"] == "refused"


def test_the_page_has_the_default_targets() -> None:
    page = PAGE.read_text()
    assert all(f"`{ending}`" in page for ending in ATTENTION)


@pytest.mark.filterwarnings("ignore")
def test_the_page_says_how_well_the_gaussian_of_each_scheduler_explains_its_step() -> None:
    rows = {row["class"].strip("`"): row for table in read_tables(PAGE.read_text()) for row in table if "class" in row}
    names = scheduler_names()
    assert set(rows) == set(names), REMEDY
    measured = 0
    for name in names:
        draws, error = gaussian_verdict(name)
        assert rows[name]["draws noise"] == draws, name
        if name in TORCHSDE or draws == "not measured":
            assert rows[name]["error"] == error, name
            continue
        assert all(cell == "exact" or float(cell) <= 1e-5 for cell in (error, rows[name]["error"])), (name, error)
        measured += draws == "yes"
    assert measured >= 15


@pytest.mark.filterwarnings("ignore")
def test_a_deviation_that_is_a_thousandth_off_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(scheduler: Any, call: Any) -> Gaussian:
        right = step_gaussian(scheduler, call)
        return Gaussian(right.mean, right.std * 1.001)

    monkeypatch.setattr("tests.support.gaussians.step_gaussian", wrong)
    assert float(gaussian_verdict("DDPMScheduler")[1]) > 1e-5
