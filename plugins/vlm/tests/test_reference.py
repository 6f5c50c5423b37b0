"""Scores are those of the model's own `generate` on Pillow images, at every size and for hard prompts."""

import pytest

from draft_core.testing.reference import compare_kind


@pytest.mark.parametrize("kind", ["vlm", "vqascore"])
def test_scores_are_those_of_generate(kind: str) -> None:
    comparison = compare_kind(kind, {"model": "tiny", "dtype": "float32"}, sizes=[(64, 48), (97, 131)])
    assert comparison.holds, comparison
