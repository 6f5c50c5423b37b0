"""A prompt that is cut is said once, with what is cut off; a tokenizer of single bytes cuts after 16 tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import draft_core
from draft_core.recipe.load import load_recipe
from draft_core.runs.cut_prompts import cut_prompts
from draft_core.runs.run import run_recipe
from tests.support.runs import without_pages
from tests.support.tiny import GOOD

LONG = ["a red dog under the old tree", "A Cat, asleep on a warm stone"]
SENTENCES = [  # fourteen letters and two special tokens are read
    "prompt 'a red dog under the old tree' is cut after 16 tokens (CLIP): 'e old tree' is not read",
    "prompt 'A Cat, asleep on a warm stone' is cut after 16 tokens (CLIP): 'warm stone' is not read",
]


def cut_notes(notes: list[str]) -> list[str]:
    return [note for note in notes if " is cut after " in note]


class Printed(logging.Handler):
    """What a logger's handler is left to print."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def printed() -> Iterator[list[str]]:
    """What the libraries print through their loggers."""
    handler = Printed()
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if "truncated" in line or "Token indices" in line]


def test_sampling_says_each_once(catalog: Any, printed: list[str]) -> None:
    notes: list[str] = []
    draft_core.sample(
        "tiny",
        [*LONG, "a cat"],
        images_per_prompt=2,
        steps=1,
        catalog=catalog,
        progress=lambda stage, done, total, note: notes.append(note),
    )
    assert cut_notes(notes) == SENTENCES
    assert said(printed) == []


def test_a_run_says_each_once(
    catalog: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: list[str]
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    recipe = load_recipe(
        {
            **GOOD,
            "model": {"pretrained": "tiny", "num_inference_steps": 1},
            "prompts": LONG[:1],
            "method": {"kind": "draft-k"},
            "train": {"steps": 3, "batch_size": 2},
            "evaluation": {"prompts": [*LONG[1:], "a cat"], "images_per_prompt": 1, "scales": []},
            "output": str(tmp_path / "run"),
            "device": "cpu",
        },
        catalog=catalog,
    )
    notes: list[str] = []
    run_recipe(recipe, catalog, progress=lambda stage, done, total, note: notes.append(note))
    assert sorted(cut_notes(notes)) == sorted(SENTENCES)
    assert said(printed) == []


def logged(message: str, name: str = "diffusers.pipelines.x") -> None:
    logging.getLogger(name).warning(message)


def test_the_words_of_other_pipelines(printed: list[str]) -> None:
    """As diffusers writes them, with the special tokens of a batch."""
    notes: list[str] = []
    with cut_prompts() as cut:
        cut.prompts = ["Two  Owls, At Night"]
        cut.progress = lambda stage, done, total, note: notes.append(note)
        start = "The following part of your input was truncated because "
        for _ in range(2):
            logged(f"{start}`max_sequence_length` is set to  256 tokens: ['owls , at night', '']")
            logged(f"{start}CLIP can only handle sequences up to 77 tokens: ['<|endoftext|><|endoftext|>', 'strange']")
            logged(f'{start}t5 can only handle sequences up to 512 tokens: ["it\'s"]')
        logged("something else")
    logged(f"{start}CLIP can only handle")
    assert notes == [
        "prompt 'Two  Owls, At Night' is cut after 256 tokens (max_sequence_length): 'owls , at night' is not read",
        "a prompt is cut after 77 tokens (CLIP): 'strange' is not read",
        'a prompt is cut after 512 tokens (t5): "it\'s" is not read',
    ]
    assert not any(handler.filters for handler in logging.getLogger("diffusers").handlers)
    assert "something else" in printed
    assert len(said(printed)) == 1, "afterwards it is printed again"
