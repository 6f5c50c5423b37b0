"""Further pipeline classes: what docs/models.md says of each is what is measured here."""

from __future__ import annotations

import pytest

from tests.support.class_checks import CHECKS, agrees, class_row
from tests.support.families import Family
from tests.support.models_table import CLASSES, PAGE, read_tables
from tests.support.thorough import THOROUGH

REMEDY = "run `python -m tests.support.models_table classes`"
ROWS = {
    row["pipeline class"].strip("`"): row
    for table in read_tables(PAGE.read_text())
    for row in table
    if "LoRA round trip" in row
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_the_page_has_these_classes_and_more_than_sixty() -> None:
    assert list(ROWS) == [family.name for family in CLASSES], REMEDY
    whole = [
        row for row in ROWS.values() if "refused" not in [row[name] for name in CHECKS if name != "batched replay"]
    ]
    assert len(whole) >= 60


@pytest.mark.parametrize("family", CLASSES if THOROUGH else CLASSES[::8], ids=lambda family: family.name)
def test_a_class_does_what_the_page_says(family: Family) -> None:
    if family.missing:
        pytest.skip(f"no {family.missing}")
    found = class_row(family)
    assert {name: cell for name, cell in found.items() if not agrees(cell, ROWS[family.name][name])} == {}, REMEDY
    assert found["samples"] == "identical"


def test_a_difference_a_refusal_and_another_format_are_told_apart() -> None:
    assert agrees("identical", "3e-07")
    assert agrees("refused: so", "refused")
    assert not agrees("3e-03", "3e-07")
    assert not agrees("refused: so", "identical")
    assert not agrees("identical", "refused")
    assert not agrees("identical, own format", "identical")
