"""Curves of a run, or of several over one another: drawn once, kept as one PNG file or as one SVG a panel."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from draft_core.evaluation.collapse import EvalRecord, over_prompts
from draft_core.learners.surrogate_learner import TEACHER
from draft_core.reporting.run_record import RunRecord
from draft_core.training.step_report import StepReport

WIDTH, HEIGHT = 4.4, 2.9  # of a panel, inches
LEFT, RIGHT, BOTTOM, TOP = 0.155, 0.025, 0.165, 0.1  # of a panel, what its axes leave free
POINTS = 500  # of a training curve: more would not be seen, and make the page large
COLOURS = ("#14507d", "#b3460b", "#2e6b2f", "#7a3b8f", "#8a6d00", "#a3224a")  # on white all above 4.5 : 1
BEST, COLLAPSE = "#2e6b2f", "#b00020"


@dataclass(frozen=True)
class Line:
    """Values against updates.

    Arguments:
        errors: half the height of a band around the values; empty for none.
        label: in the legend; empty for none.
        every: the values before a running mean, drawn faintly; empty for none.
    """

    updates: Sequence[int]
    values: Sequence[float]
    errors: Sequence[float] = ()
    label: str = ""
    every: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line at an update."""

    update: int
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Arguments:
        note: what the band is.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    note: str = ""

    @property
    def text(self) -> str:
        """What it shows in words, for who does not see it."""
        ends = [
            f"{line.label + ': ' if line.label else ''}from {finite[0]:.4g} to {finite[-1]:.4g}"
            for line in self.lines
            if (finite := [value for value in line.values if math.isfinite(value)])
        ]
        marks = [f"{mark.label} at update {mark.update}" for mark in self.marks]
        return f"Curve of {self.title} against updates, {'; '.join([*ends, *marks])}"


# What is drawn


def training_panels(record: RunRecord, marks: Sequence[Mark] = ()) -> list[Panel]:
    """Each trained reward on the training batches, the gradient norm, and what the method reports beside.

    Of a reward with a surrogate one panel shows what the surrogate and what the reward itself said.
    """
    reports = record.reports
    if not reports:
        return []
    named = {name: [report.learner.get(name, math.nan) for report in reports] for name in _reported(reports)}
    panels = []
    for name, scores in scored(reports).items():
        line, judged = training_line(reports, scores), TEACHER.format(name)
        lines = [line]
        if judged in named:
            lines = [replace(line, label="surrogate"), training_line(reports, named.pop(judged), "the reward itself")]
        panels.append(Panel(f"{name}, training batches", lines, marks))
    further = {"gradient norm": [report.grad_norm for report in reports], **named}
    return panels + [
        Panel(name.replace("_", " "), [training_line(reports, values)], marks) for name, values in further.items()
    ]


def scored(reports: Sequence[StepReport]) -> dict[str, list[float]]:
    """Reward -> its mean score in each update; NaN in those of a run that went on with other rewards."""
    names = dict.fromkeys(name for report in reports for name in report.scores)
    return {name: [report.scores.get(name, math.nan) for report in reports] for name in names}


def _reported(reports: Sequence[StepReport]) -> list[str]:
    """The names of the numbers that the method reports."""
    return list(dict.fromkeys(name for report in reports for name in report.learner))


def training_line(reports: Sequence[StepReport], values: Sequence[float], label: str = "") -> Line:
    """A running mean with the standard deviation in its window, and what it runs over."""
    shown = range(0, len(values), 1 + len(values) // POINTS)
    means, spreads = _running(values, shown)
    return Line([reports[index].update for index in shown], means, spreads, label, [values[index] for index in shown])


IMAGE_MEASURES: dict[str, Callable[[EvalRecord], Sequence[float]]] = {
    "diversity": lambda evaluation: evaluation.diversity,
    "drift": lambda evaluation: evaluation.drift,
    "colour": lambda evaluation: evaluation.colour,
    "detail": lambda evaluation: evaluation.detail,
    "movement": lambda evaluation: evaluation.movement,
    "flicker": lambda evaluation: evaluation.flicker,
}


def evaluation_panels(record: RunRecord, marks: Sequence[Mark] = ()) -> list[Panel]:
    """Each score and each measure of the evaluations' images, with the standard error over prompts."""
    panels = []
    for name in record.before.scores:
        role = record.facts.role if name in record.facts.rewards else "held out"
        panels.append(Panel(f"{name} ({role})", [evaluation_line(record.evaluations, score(name))], marks))
    panels += _component_panels(record, marks)
    for title, values in IMAGE_MEASURES.items():
        if values(record.before):
            panels.append(Panel(title, [evaluation_line(record.evaluations, values)], marks))
    return panels


def _component_panels(record: RunRecord, marks: Sequence[Mark]) -> list[Panel]:
    """For each reward that tells what its score is made of, one panel with a line for each part."""
    lines: dict[str, list[Line]] = {}
    for name in record.before.components:
        reward, _, part = name.partition(": ")
        lines.setdefault(reward, []).append(evaluation_line(record.evaluations, component(name), part))
    return [Panel(f"{reward}, its components", found, marks) for reward, found in lines.items()]


def component(name: str) -> Callable[[EvalRecord], Sequence[float]]:
    """What takes one component of a score from an evaluation."""
    return lambda evaluation: evaluation.components[name]


def score(name: str) -> Callable[[EvalRecord], Sequence[float]]:
    """What takes the scores of one reward from an evaluation."""
    return lambda evaluation: evaluation.scores[name]


def evaluation_line(
    evaluations: Sequence[EvalRecord], values: Callable[[EvalRecord], Sequence[float]], label: str = ""
) -> Line:
    """Means over the images of each evaluation, and their standard errors over prompts."""
    means = [over_prompts(values(evaluation), evaluation.prompts) for evaluation in evaluations]
    return Line(
        [evaluation.update for evaluation in evaluations], [m.mean for m in means], [m.error for m in means], label
    )


def gradient_panels(record: RunRecord, marks: Sequence[Mark] = ()) -> list[Panel]:
    """The gradient norm of each reward by itself and the cosines between them; nothing for a single reward."""
    evaluations = [evaluation for evaluation in record.evaluations if evaluation.gradients]
    if not evaluations:
        return []
    updates = [evaluation.update for evaluation in evaluations]
    norms = [
        Line(updates, [evaluation.gradients[name] for evaluation in evaluations], label=name)
        for name in evaluations[0].gradients
    ]
    cosines = [
        Line(updates, [evaluation.cosines[pair] for evaluation in evaluations], label=pair)
        for pair in evaluations[0].cosines
    ]
    return [Panel("gradient norm of each reward", norms, marks), Panel("cosine between gradients", cosines, marks)]


def _running(values: Sequence[float], shown: Sequence[int]) -> tuple[list[float], list[float]]:
    """At these places, means and standard deviations over a tenth of the run, cut off at its ends, without NaN."""
    half = max(1, len(values) // 20)
    windows = [values[max(0, index - half) : index + half + 1] for index in shown]
    finite = [[value for value in window if math.isfinite(value)] for window in windows]
    return [fmean(w) if w else math.nan for w in finite], [pstdev(w) if w else math.nan for w in finite]


# How it is drawn


def svg(panel: Panel) -> bytes:
    """The panel as SVG; the same panel gives the same bytes."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "draft"}):
        figure = _figure()
        _draw(figure.subplots(), panel)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def save_png(panels: Sequence[Panel], path: Path) -> None:
    """All panels in one file, three in a row."""
    columns = min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = _figure(columns, lines)
    FigureCanvasAgg(figure)
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def _figure(columns: int = 1, lines: int = 1) -> Figure:
    """Room for so many panels. The layouts that matplotlib finds itself draw everything twice; these are known."""
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines))
    figure.subplots_adjust(
        left=LEFT / columns,
        right=1 - RIGHT / columns,
        bottom=BOTTOM / lines,
        top=1 - TOP / lines,
        wspace=(LEFT + RIGHT) / (1 - LEFT - RIGHT),
        hspace=(BOTTOM + TOP) / (1 - BOTTOM - TOP),
    )
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    for index, line in enumerate(panel.lines):
        colour = COLOURS[index % len(COLOURS)]
        if line.every:
            axes.plot(line.updates, line.every, color=colour, linewidth=0.8, alpha=0.35)
        if line.errors:
            low = [value - error for value, error in zip(line.values, line.errors, strict=True)]
            high = [value + error for value, error in zip(line.values, line.errors, strict=True)]
            axes.fill_between(line.updates, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = "" if line.every else "o"
        axes.plot(line.updates, line.values, color=colour, linewidth=2, marker=marker, markersize=4, label=line.label)
    for mark in panel.marks:
        axes.axvline(mark.update, color=mark.colour, linewidth=1.2, linestyle="--", label=mark.label)
    if panel.marks or any(line.label for line in panel.lines):
        axes.legend(fontsize=8, framealpha=0.8)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("update", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.yaxis.set_major_formatter("{x:.6g}")  # whole at every tick: a power of ten above takes the title's place
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
