"""The same scores as numpy on scikit-image's CIELAB."""

from __future__ import annotations

from typing import Any

import pytest
from draft_reward_colour import harmony, lab

from draft_core.testing import SIZES, compare_kind

pytest.importorskip("skimage", reason="scikit-image is missing: its CIELAB is the reference")

COLOURS = ["#1d3557", "#e63946", "#f1c453"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "palette": ("palette", {"colours": COLOURS}),
    "soft": ("palette", {"colours": COLOURS, "sharpness": 0.05}),
    "background": ("palette", {"colours": COLOURS, "background": {"colour": "#808080", "tolerance": 25}}),
    "asked": ("asked-colour", {}),
    "asked, background": ("asked-colour", {"background": {"colour": "#808080", "tolerance": 25}}),
    "harmony": ("colour-harmony", {}),
    **{f"harmony {letter}": ("colour-harmony", {"templates": [letter]}) for letter in harmony.TEMPLATES},
}


@pytest.mark.parametrize(("kind", "fields"), CASES.values(), ids=CASES)
def test_scores_are_those_of_the_reference(kind: str, fields: dict[str, Any]) -> None:
    comparison = compare_kind(kind, fields, sizes=[(97, 64), (61, 67)], count=4)
    assert comparison.holds, comparison


@pytest.mark.parametrize(
    ("kind", "size"),
    # The harmony's reference tries every turn of every template at every pixel: seconds for each of the larger sizes.
    [*(("palette", size) for size in SIZES), ("colour-harmony", (224, 224)), ("colour-harmony", (97, 64))],
    ids=str,
)
def test_scores_are_those_of_the_reference_at_every_size(kind: str, size: tuple[int, int]) -> None:
    comparison = compare_kind(kind, {"colours": COLOURS} if kind == "palette" else {}, sizes=[size], count=3)
    assert comparison.holds, comparison


@pytest.mark.parametrize("kind", ["palette", "colour-harmony"])
def test_levels_taken_for_light_would_be_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_KNEE", 0.5)
    fields = {"colours": COLOURS} if kind == "palette" else {}
    assert not compare_kind(kind, fields, sizes=[(97, 64)], count=3).holds


def test_a_template_of_another_width_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harmony.TEMPLATES, "V", (harmony.Sector(0, 90), harmony.Sector(0, 90)))
    assert not compare_kind("colour-harmony", {"templates": ["V"]}, sizes=[(97, 64)]).holds
