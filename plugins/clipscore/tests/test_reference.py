"""The same score as each library's own pipeline: its transform or processor with Pillow, and its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from draft_reward_clipscore import draft_register_rewards

from draft_core.rewards.images import resize_and_crop_like_pil
from draft_core.testing import SIZES, Comparison, compare_kind

(SPEC,) = draft_register_rewards()
LIBRARIES = ("open_clip", "transformers")


def comparison(library: str, size: tuple[int, int] = (300, 401), **fields: Any) -> Comparison:
    return compare_kind("clipscore", {**SPEC.small, "library": library, **fields}, sizes=[size])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("library", LIBRARIES)
def test_cosines_are_those_of_the_library(library: str, size: tuple[int, int]) -> None:
    found = comparison(library, size)
    assert found.holds, found


@pytest.mark.parametrize("definition", ["clipscore", "percent"])
def test_the_other_definitions_too(definition: str) -> None:
    """With a seed whose cosines are positive, as trained models' are."""
    found = comparison("open_clip", definition=definition, seed=7)
    assert found.holds, found


def test_a_model_in_a_folder(folder: Path) -> None:
    fields = {"library": "transformers", "model": str(folder), "definition": "cosine"}
    found = compare_kind("clipscore", fields, sizes=[(427, 640)])
    assert found.holds, found


@pytest.mark.parametrize("library", LIBRARIES)
def test_each_library_crops_in_its_own_way(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"half-even": "floor", "floor": "half-even"}
    monkeypatch.setattr(
        "draft_reward_clipscore.encoders.resize_and_crop_like_pil",
        lambda images, size, crop, rounding, filter: resize_and_crop_like_pil(
            images, size, crop, rounding=other[rounding], filter=filter
        ),
    )
    assert not comparison(library).holds
