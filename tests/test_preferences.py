"""Pairs of images in the columns of a list: what each says, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draft_core.errors import DraftError
from draft_core.preferences import Preference, preferences

FOLDER = Path("/votes")


def test_a_row_says_which_image_is_better_and_how_surely() -> None:
    columns = {
        "winner": ["a.png", "b/c.png", "/d.png", "e.png"],
        "loser": ["1.png", "2.png", "3.png", "4.png"],
        "tie": ["", "true", "False", "true"],
        "grade": ["", "", "0.75", "0.5"],
        "author": ["", "", "", ""],
    }
    assert preferences(columns, FOLDER) == [
        Preference(FOLDER / "a.png", FOLDER / "1.png", 1.0),
        Preference(FOLDER / "b/c.png", FOLDER / "2.png", 0.5),
        Preference(Path("/d.png"), FOLDER / "3.png", 0.75),
        Preference(FOLDER / "e.png", FOLDER / "4.png", 0.5),
    ]
    assert preferences({"winner": ["a"], "loser": ["b"]}, FOLDER) == [Preference(FOLDER / "a", FOLDER / "b")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"loser": ["x"]}, "it has no 'winner'; give every pair a prompt, a winner and a loser"),
        ({"winner": ["a"], "loser": ["a"]}, "pair 1: both images are a; correct it, or leave that pair out"),
        ({"winner": ["a", " "], "loser": ["b", "c"]}, "pair 2: an image is not named; correct it"),
        ({"winner": ["a"], "loser": ["b"], "tie": ["maybe"]}, "pair 1: its tie is 'maybe', neither true nor false"),
        ({"winner": ["a"], "loser": ["b"], "grade": ["0.4"]}, "pair 1: its grade is '0.4', no number from 0.5 to 1"),
        ({"winner": ["a"], "loser": ["b"], "grade": ["nan"]}, "pair 1: its grade is 'nan', no number from 0.5 to 1"),
        ({"winner": ["a"], "loser": ["b"], "grade": ["good"]}, "pair 1: its grade is 'good', no number from"),
        ({"winner": ["a"], "loser": ["b"], "grade": ["0.9"], "tie": ["true"]}, "pair 1: it is a tie with the grade"),
    ],
)
def test_a_row_that_is_no_preference_is_named(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DraftError, match=sentence):
        preferences(row, FOLDER)
