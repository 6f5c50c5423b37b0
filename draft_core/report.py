"""Pictures, curves and pages: what a person looks at when a run is over.

Tensors wing. May import: images, monitor, record, trainer.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from draft_core.images import to_pil
from draft_core.monitor import Change, Evaluation, change
from draft_core.record import RunRecord
from draft_core.trainer import StepReport

CELL = 128  # side of a picture on a sheet in pixels; small pictures are enlarged to it, large ones reduced
MARGIN = 8
FONT_SIZE = 15
ROWS = 16  # prompts on a before-and-after sheet


@dataclass(frozen=True)
class Row:
    """One score of the report's table: its means before, at the best look and in the end.

    Arguments:
        change: from before to the end, with the standard error over prompts.
    """

    name: str
    before: float
    best: float
    after: float
    change: Change

    @property
    def percent(self) -> float | None:
        """The change in percent of the magnitude before, None where that is zero."""
        return 100 * self.change.mean / abs(self.before) if self.before else None


def write_report(record: RunRecord) -> Path:
    """Fills the run's folder with before_after.png, curve.png, lora/README.md and report.html; returns the page."""
    folder = record.folder
    before_after(record.evaluation(record.before), record.evaluation(record.last)).save(folder / "before_after.png")
    save_curve(record.reports, folder / "curve.png")
    card_picture = folder / "lora" / "before_after.png"
    shutil.copyfile(folder / "before_after.png", card_picture)
    (folder / "lora" / "README.md").write_text(_render("card.md.j2", record), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(
        _render(
            "report.html.j2",
            record,
            pictures=_data_uri(folder / "before_after.png"),
            curve=_data_uri(folder / "curve.png"),
        ),
        encoding="utf-8",
    )
    return page


def rows(record: RunRecord) -> list[Row]:
    """Every score of the looks."""
    before, best, after = record.before.means(), record.best.means(), record.last.means()
    return [
        Row(
            name,
            before[name],
            best[name],
            after[name],
            change(record.before.scores[name], record.last.scores[name], record.last.prompts),
        )
        for name in before
    ]


# Sheets of pictures


def before_after(before: Evaluation, after: Evaluation) -> Image.Image:
    """One row a prompt: its pictures before, then after, from the same seeds."""
    seeds = len(before.seeds)
    rows = []
    for row, prompt in enumerate(before.prompts[:ROWS]):
        places = slice(row * seeds, (row + 1) * seeds)
        rows.append((prompt, [*before.images[places], *after.images[places]]))
    return sheet(rows, headings=["before", *[""] * (seeds - 1), "after", *[""] * (seeds - 1)], gap_after=seeds)


def sheet(
    rows: Sequence[tuple[str, Sequence[torch.Tensor]]], *, headings: Sequence[str] = (), gap_after: int = 0
) -> Image.Image:
    """Rows of pictures (3, H, W) in [0, 1] with a label on the left.

    Arguments:
        headings: over the columns; none leaves no room for them.
        gap_after: a wider gap follows this many columns; 0 for none.
    """
    font = ImageFont.load_default(FONT_SIZE)
    label_width = max((int(font.getlength(line)) for label, _ in rows for line in _wrapped(label)), default=0)
    left = label_width + 2 * MARGIN
    top = MARGIN + (FONT_SIZE + MARGIN if headings else 0)
    columns = max(len(pictures) for _, pictures in rows)
    step = CELL + MARGIN
    width = left + columns * step + (3 * MARGIN if gap_after else 0)
    canvas = Image.new("RGB", (width, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(canvas)

    def x(column: int) -> int:
        return left + column * step + (3 * MARGIN if gap_after and column >= gap_after else 0)

    for column, heading in enumerate(headings):
        draw.text((x(column), MARGIN), heading, fill="black", font=font)
    for row, (label, pictures) in enumerate(rows):
        y = top + row * step
        draw.multiline_text((MARGIN, y + CELL // 3), "\n".join(_wrapped(label)), fill="black", font=font)
        for column, picture in enumerate(pictures):
            image = to_pil(picture)
            image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            scale = max(1, CELL // max(image.size))
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
            canvas.paste(image, (x(column), y))
            draw.rectangle((x(column) - 1, y - 1, x(column) + CELL, y + CELL), outline="#dddddd")
    return canvas


def _wrapped(label: str, width: int = 26) -> list[str]:
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:4]


# Curves


def save_curve(reports: Sequence[StepReport], path: Path) -> None:
    """Each reward and the gradient norm against updates: every update thin, a running mean bold."""
    series = {f"reward {name}": [report.scores[name] for report in reports] for name in reports[0].scores}
    series["gradient norm"] = [report.grad_norm for report in reports]
    updates = [report.update for report in reports]
    figure = Figure(figsize=(4.5 * len(series), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, values) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        axes.plot(updates, values, color="#9bbcd8", linewidth=1)
        axes.plot(updates, _running_mean(values), color="#14507d", linewidth=2)
        axes.set(title=title, xlabel="update")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of a tenth of the run, centred and cut off at the ends."""
    half = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, place - half) : place + half + 1])) for place in range(len(values))]


# Pages


def _render(template: str, record: RunRecord, **more: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files("draft_core") / "templates" / name).read_text()),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        run=record,
        facts=record.facts,
        changes=rows(record),
        seconds_per_update=float(np.mean([report.seconds for report in record.reports])),
        **more,
    )


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
