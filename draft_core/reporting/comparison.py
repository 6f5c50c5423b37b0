"""Several runs on one page: their scores, their curves over one another, the same images, and how recipes differ."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from draft_core.errors import DraftError
from draft_core.reporting.curves import IMAGE_MEASURES, Line, Panel, evaluation_line, score, scored, training_line
from draft_core.reporting.image_grid import strip_uris
from draft_core.reporting.images import BUDGET, COLUMNS, ROWS, is_small
from draft_core.reporting.page import drawn
from draft_core.reporting.reference_curves import is_curve
from draft_core.reporting.rendering import render
from draft_core.reporting.run_record import IMAGES, RunRecord
from draft_core.reporting.summary import Row, RunSummary, summarize
from draft_core.reporting.verdict import RunVerdict


@dataclass(frozen=True)
class NamedRun:
    """One run of several, under the name that the page gives it."""

    name: str
    summary: RunSummary

    @property
    def record(self) -> RunRecord:
        """What its folder tells."""
        return self.summary.record

    @property
    def verdict(self) -> RunVerdict:
        """What came of it."""
        return self.summary.verdict

    @property
    def rows(self) -> Mapping[str, Row]:
        """Score -> its line of the table."""
        return {row.name: row for row in self.summary.rows}


def write_comparison(records: Sequence[RunRecord], page: Path) -> Path:
    """Writes one HTML page about two or more runs that needs nothing beside itself; returns it.

    Raises:
        DraftError: if a run is named twice.
    """
    runs = [
        NamedRun(name, summarize(record, has_images=(record.folder / IMAGES).is_dir()))
        for name, record in zip(_names(records), records, strict=True)
    ]
    images, remarks = _images(runs)
    html = render(
        "comparison.html.j2",
        runs=runs,
        small=all(is_small(run.summary) for run in runs if run.summary.images),
        scores=list(dict.fromkeys(name for run in runs for name in run.rows)),
        training=drawn(_training_panels(runs)),
        evaluated=drawn(_evaluation_panels(runs)),
        images=images,
        remarks=remarks,
        differences=[(run.name, _difference(runs[0], run)) for run in runs[1:]],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    return page


def _names(records: Sequence[RunRecord]) -> list[str]:
    """The folders' names, or their paths where names are the same; a reference curve is called one."""
    paths = [record.folder.resolve() for record in records]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise DraftError("the run is named twice", where=str(twice), next="name every run once")
    kinds = [" (reference)" if is_curve(record) else "" for record in records]
    names = [f"{path.name}{kind}" for path, kind in zip(paths, kinds, strict=True)]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


# Curves


def _training_panels(runs: Sequence[NamedRun]) -> list[Panel]:
    scores = {run.name: scored(run.record.reports) for run in runs}
    return [
        Panel(
            f"{name}, training batches",
            [
                training_line(run.record.reports, scores[run.name][name], run.name)
                for run in runs
                if name in scores[run.name]
            ],
        )
        for name in dict.fromkeys(name for of_run in scores.values() for name in of_run)
    ]


def _evaluation_panels(runs: Sequence[NamedRun]) -> list[Panel]:
    scores = dict.fromkeys(name for run in runs for name in run.record.before.scores)
    panels = [Panel(name, _score_lines(runs, name)) for name in scores]
    for title, values in IMAGE_MEASURES.items():
        lines = [evaluation_line(run.record.evaluations, values, run.name) for run in runs if values(run.record.before)]
        if lines:
            panels.append(Panel(title, lines))
    return panels


def _score_lines(runs: Sequence[NamedRun], name: str) -> list[Line]:
    return [
        evaluation_line(run.record.evaluations, score(name), run.name)
        for run in runs
        if name in run.record.before.scores
    ]


# Images


def _images(runs: Sequence[NamedRun]) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """For each prompt that all runs drew: heading -> URI of a strip of each that kept its images; and what differs."""
    prompts, seeds, remarks = _in_common(runs)
    remarks += [f"There are no images of {run.name} here." for run in runs if not run.summary.images]
    runs = [run for run in runs if run.summary.images]
    if not prompts or not seeds or not runs:
        return [], remarks
    first = runs[0].record
    alike = all(_base(run) == _base(runs[0]) for run in runs)
    if not alike:
        remarks.append("Models or settings of the sampler differ, so each run has its own images before.")
    wanted: dict[Any, Sequence[torch.Tensor]] = {}
    for run in runs:
        before = "before" if alike else f"{run.name}, before"
        for heading, evaluation in (
            (before, run.record.before),
            (f"{run.name}, update {run.record.last.update}", run.record.last),
        ):
            if heading == "before" and run.record is not first:
                continue
            facts = run.record.facts
            for prompt in prompts:
                of_prompt = run.summary.images_of(evaluation, list(facts.prompts).index(prompt))
                wanted[prompt, heading] = [of_prompt[list(facts.seeds).index(seed)] for seed in seeds]
    encoded = strip_uris(wanted, budget=BUDGET)
    return [
        (prompt, {heading: uri for (of, heading), uri in encoded.items() if of == prompt}) for prompt in prompts
    ], remarks


def _base(run: NamedRun) -> tuple[Any, ...]:
    facts = run.record.facts
    return facts.model, facts.dtype, facts.call, facts.source, facts.scheduler


def _in_common(runs: Sequence[NamedRun]) -> tuple[list[str], list[int], list[str]]:
    """Prompts and seeds of all runs, as many as are shown, and what some of them lack."""
    facts, remarks = [run.record.facts for run in runs], []
    prompts = [prompt for prompt in facts[0].prompts if all(prompt in other.prompts for other in facts)]
    seeds = [seed for seed in facts[0].seeds if all(seed in other.seeds for other in facts)]
    for what, shared, counts in (
        ("prompts", len(prompts), [len(other.prompts) for other in facts]),
        ("seeds", len(seeds), [len(other.seeds) for other in facts]),
    ):
        if not shared:
            remarks.append(f"No {what} are the same in all runs, so there are no images to compare.")
        elif any(count != shared for count in counts):
            listed = ", ".join(f"{count} in {run.name}" for count, run in zip(counts, runs, strict=True))
            remarks.append(f"All runs share {shared} of their {what} ({listed}); scores are over all images of a run.")
    return prompts[:ROWS], seeds[:COLUMNS], remarks


# Recipes


def _difference(first: NamedRun, other: NamedRun) -> list[str]:
    """Lines of a unified diff from one recipe to another, without its header."""
    lines = difflib.unified_diff(
        first.record.recipe_yaml.splitlines(), other.record.recipe_yaml.splitlines(), lineterm="", n=2
    )
    return list(lines)[2:]
