"""docs/models.md says what the tests measure: it has their rows, and its verdicts are those that they demand."""

from __future__ import annotations

import re

import pytest

from draft_core.adapters.lora import ATTENTION, FURTHER_TARGETS
from tests.support.families import FAMILIES
from tests.support.models_table import MEASURED, PAGE, family_facts, read_tables, schedule_facts
from tests.support.schedules import SCHEDULES

REMEDY = "run `python -m tests.support.models_table`"
FAMILY_ROWS, TARGET_ROWS, SCHEDULE_ROWS, *_ = read_tables(PAGE.read_text())


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
    assert {row["denoiser"]: set(re.findall(r"`([^`]+)`", row["further layers"])) for row in TARGET_ROWS} == {
        f"`{name}`": set(endings) for name, endings in FURTHER_TARGETS.items()
    }
