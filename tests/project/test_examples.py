"""The examples are run: a downstream project finds noise that two rewards like better."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from draft_core import Objective
from tests.support.tiny import Redness, RednessConfig, byte_tokenizer, tiny_pipe

EXAMPLE = Path(__file__).parents[2] / "examples" / "downstream" / "noise_search.py"


def test_noise_search_raises_the_sum_of_two_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    objective = Objective({"one": Redness(RednessConfig()), "two": Redness(RednessConfig(contrast=0.5))})
    search = importlib.import_module("noise_search").noise_search(
        tiny_pipe(tokenizer=byte_tokenizer(tmp_path)),
        objective,
        "a cat",
        steps=6,
        rate=0.1,
        num_inference_steps=2,
        guidance_scale=3.0,
    )
    totals = [sum(found.scores.values()) for found in search]
    assert len(totals) == 6
    assert totals[-1] > totals[0] + 1e-3
