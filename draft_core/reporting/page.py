"""The page of a run, under way or finished: what a person opens to see what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from draft_core.adapters.files import IP_ADAPTER_FILE, lora_folder
from draft_core.reporting.card import usage, write_card
from draft_core.reporting.curves import (
    Panel,
    evaluation_panels,
    gradient_panels,
    save_png,
    svg,
    training_panels,
)
from draft_core.reporting.image_grid import data_uri
from draft_core.reporting.images import COLUMNS, before_after, input_strips, is_small, prompt_strips
from draft_core.reporting.live import RunState
from draft_core.reporting.rendering import render
from draft_core.reporting.run_record import RunRecord, write_whole
from draft_core.reporting.summary import RunSummary, summarize


def write_report(record: RunRecord, state: RunState | None = None) -> Path:
    """Fills the run's folder with its pages, and returns the one to open.

    It writes before_after.png, curve.png, report.html, and a model card with an image into each folder of a LoRA.

    Arguments:
        state: of a run under way, whose page alone is written; None for a finished one.

    Raises:
        CheckpointError: if images or LoRA of the run are gone.
    """
    page = record.folder / "report.html"
    if state is not None:
        write_whole(page, page_of(summarize(record), state))
        return page
    lora_folder(record.folder, IP_ADAPTER_FILE)
    summary = summarize(record)
    folder, marks = record.folder, summary.marks
    before_after(summary, summary.shown).save(folder / "before_after.png")
    panels = [*training_panels(record, marks), *evaluation_panels(record, marks), *gradient_panels(record, marks)]
    save_png(panels, folder / "curve.png")
    for name, evaluation in summary.loras.items():
        write_card(summary, folder / name, evaluation)
    write_whole(page, page_of(summary))
    return page


def page_of(summary: RunSummary, state: RunState | None = None) -> str:
    """The run as one HTML page that needs nothing beside itself.

    Arguments:
        state: of a run under way.
    """
    record, marks = summary.record, summary.marks
    images, scaled = prompt_strips(summary)
    return render(
        "report.html.j2",
        run=record,
        facts=record.facts,
        best=summary.best,
        verdict=summary.verdict,
        rows=summary.rows,
        evaluations=summary.shown,
        small=is_small(summary),
        shown_seeds=record.facts.seeds[:COLUMNS],
        images=images,
        inputs=input_strips(summary),
        scaled=scaled,
        training=drawn(training_panels(record, marks)),
        evaluated=drawn(evaluation_panels(record, marks)),
        gradients=drawn(gradient_panels(record, marks)),
        skipped=[(report.update, reason) for report in record.reports for reason in report.skipped],
        notes=[(report.update, note) for report in record.reports for note in report.notes],
        seconds_per_update=fmean(report.seconds for report in record.reports) if record.reports else None,
        usage=None if state else usage(record, record.folder / list(summary.loras)[-1], base=record.facts.location),
        state=state,
        **summary.phrases,
    )


def drawn(panels: Sequence[Panel]) -> list[dict[str, str]]:
    """Each panel as a URI, with its text."""
    return [{"uri": data_uri(svg(panel), "image/svg+xml"), "text": panel.text} for panel in panels]
