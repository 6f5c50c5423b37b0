"""Which class a name means, and what is said when none or several."""

from __future__ import annotations

import pytest
from draft_reward_adversarial.classes import all_names, class_index

from draft_core.errors import DraftError

NAMES = [
    all_names("bee", "n1"),
    all_names("tabby, tabby cat", "n2"),
    all_names("tiger cat", "n3"),
    all_names("crane", "n4"),
    all_names("crane", "n5"),
    all_names("bathtub, tub", "n6"),
    all_names("tub, vat", "n7"),
    all_names("maillot", "n8"),
    all_names("maillot, tank suit", "n9"),
]


def index(chosen: int | str) -> int:
    return class_index(chosen, NAMES, len(NAMES), where="target")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        *[(0, 0), (8, 8), ("bee", 0), ("BEE", 0), ("n2", 1), ("tabby", 1), ("tabby cat", 1), ("Tabby, tabby cat", 1)],
        *[("tiger_cat", 2), (" tiger  cat ", 2), ("n5", 4), ("vat", 6), ("tub, vat", 6)],
        *[("maillot", 7), ("tank suit", 8)],
    ],
)
def test_a_class_is_found(chosen: int | str, expected: int) -> None:
    assert index(chosen) == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("tiger cta", r"target: there is no class 'tiger cta' among the 9; did you mean 'tiger cat' \(2\)\?"),
        ("xylophone", r"there is no class 'xylophone' among the 9; give the index, 0 to 8\."),
        ("crane", r"'crane' names 2 classes \(3: crane \(n4\); 4: crane \(n5\)\); give the index or another name"),
        ("tub", r"'tub' names 2 classes \(5: bathtub, tub \(n6\); 6: tub, vat \(n7\)\)"),
        (9, r"there is no class 9; use 0 to 8"),
    ],
)
def test_no_class_or_several_are_explained(chosen: int | str, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        index(chosen)


def test_names_need_names() -> None:
    with pytest.raises(DraftError, match=r"have no known names, 'bee' cannot be looked up; give an index, 0 to 9"):
        class_index("bee", None, 10, where="target")
    assert class_index(9, None, 10, where="target") == 9
