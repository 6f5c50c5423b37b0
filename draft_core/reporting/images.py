"""The images of a run as a page and a card show them: a grid as one file, strips inside a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from draft_core.evaluation.collapse import EvalRecord
from draft_core.reporting.image_grid import LOSSLESS, draw_grid, playing_uri, strip_uris
from draft_core.reporting.run_record import load_inputs, video_files
from draft_core.reporting.summary import RunSummary

ROWS = 16  # prompts of which images are shown
COLUMNS = 4  # images of each prompt on the page
BUDGET = 2_000_000  # bytes of images on a page


def before_after(summary: RunSummary, evaluations: Mapping[str, EvalRecord]) -> Image.Image:
    """One row a prompt: its images at each evaluation, from the same seeds.

    Arguments:
        evaluations: heading -> one of `summary.shown`.
    """
    facts = summary.record.facts
    rows = [
        (prompt, [image for seen in evaluations.values() for image in summary.images_of(seen, number)])
        for number, prompt in enumerate(facts.prompts[:ROWS])
    ]
    return draw_grid(rows, headings=list(evaluations), group=len(facts.seeds))


def prompt_strips(summary: RunSummary) -> tuple[list[tuple[str, dict[str, str]]], dict[float, str]]:
    """For each prompt the URI of its strip at each evaluation; and for each scale of the LoRA the URI of a strip."""
    prompts = summary.record.facts.prompts[:ROWS]
    wanted: dict[Any, Sequence[torch.Tensor]] = {
        (number, heading): list(summary.images_of(seen, number)[:COLUMNS])
        for number in range(len(prompts))
        for heading, seen in summary.shown.items()
    }
    scaled = {scale: list(images) for scale, images in summary.scaled.items()}
    encoded = strip_uris({**wanted, **scaled}, budget=BUDGET)
    encoded.update(playing_strips(summary, len(prompts)))
    of_prompts = [
        (prompt, {heading: encoded[number, heading] for heading in summary.shown})
        for number, prompt in enumerate(prompts)
    ]
    return of_prompts, {scale: encoded[scale] for scale in scaled}


def playing_strips(summary: RunSummary, count: int) -> dict[tuple[int, str], str]:
    """(Number of a prompt, heading) -> the URI of its videos side by side; of the first prompts that fit the page."""
    record, seeds = summary.record, len(summary.record.facts.seeds)
    found: dict[tuple[int, str], str] = {}
    for number in range(count):
        shown = range(number * seeds, number * seeds + min(seeds, COLUMNS))
        files = {heading: video_files(record.folder, seen.update, shown) for heading, seen in summary.shown.items()}
        if not all(files.values()):
            break
        more = {(number, heading): playing_uri(of_heading) for heading, of_heading in files.items()}
        if sum(map(len, [*found.values(), *more.values()])) > BUDGET:
            break
        found |= more
    return found


def input_strips(summary: RunSummary) -> list[dict[str, str]]:
    """For each prompt that is shown: argument of the call -> the URI of the image that it was given for the prompt."""
    inputs = load_inputs(summary.record.folder)
    count = len(summary.record.facts.prompts[:ROWS])
    wanted = {(number, name): [it] for name, images in inputs.items() for number, it in enumerate(images[:count])}
    encoded = strip_uris(wanted, budget=BUDGET)
    return [{name: encoded[number, name] for name in inputs if (number, name) in encoded} for number in range(count)]


def is_small(summary: RunSummary) -> bool:
    """Whether its images are so small that a page shows their pixels."""
    return max(next(iter(summary.images.values())).shape[-2:]) <= LOSSLESS
