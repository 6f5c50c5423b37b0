"""Pictures, curves and pages: what a person looks at when a run is over.

Tensors wing. May import: images, monitor, trainer.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping, Sequence
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
from draft_core.monitor import Evaluation
from draft_core.trainer import StepReport

CELL = 128  # side of a picture on a sheet in pixels; small pictures are enlarged to it, large ones reduced
MARGIN = 8
FONT_SIZE = 15
ROWS = 16  # prompts on a before-and-after sheet


@dataclass(frozen=True)
class Licence:
    """The licences of one thing a run used; `weights` is None where it has none."""

    thing: str
    code: str
    weights: str | None


@dataclass(frozen=True)
class RunRecord:
    """All that a report tells of one run.

    Arguments:
        location: what `DiffusionPipeline.from_pretrained` takes for the model.
        call: the pipeline's arguments that the pictures were made with.
        rewards: name -> weight of what was trained on.
        prompts_are_unseen: whether the pictured prompts were kept out of training.
        seconds: wall time of pictures and updates.
        peak_memory_bytes: of the GPU where there was one, of the process otherwise.
    """

    folder: Path
    model: str
    location: str
    estimator: str
    rewards: Mapping[str, float]
    prompts_are_unseen: bool
    call: Mapping[str, object]
    recipe_yaml: str
    versions: Mapping[str, str]
    licences: Sequence[Licence]
    reports: Sequence[StepReport]
    before: Evaluation
    after: Evaluation
    seconds: float
    device: str
    peak_memory_bytes: int
    images_per_update: int


@dataclass(frozen=True)
class Change:
    """One reward's mean over the pictures, before and after, with the standard error over prompts."""

    name: str
    before: float
    after: float
    error: float

    @property
    def percent(self) -> float | None:
        """Change in percent of the magnitude before, None where that is zero."""
        return 100 * (self.after - self.before) / abs(self.before) if self.before else None


def write_report(record: RunRecord) -> Path:
    """Fills the run's folder with before_after.png, curve.png, lora/README.md and report.html; returns the page."""
    folder = record.folder
    before_after(record.before, record.after).save(folder / "before_after.png")
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


def changes(before: Evaluation, after: Evaluation) -> list[Change]:
    """Every reward's change; the error is that of the mean difference, over prompts."""
    found = []
    for name, old in before.scores.items():
        new = after.scores[name]
        per_prompt = (new - old).view(len(before.prompts), -1).mean(dim=1)
        error = per_prompt.std() / len(per_prompt) ** 0.5 if len(per_prompt) > 1 else torch.tensor(float("nan"))
        found.append(Change(name, float(old.mean()), float(new.mean()), float(error)))
    return found


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
        changes=changes(record.before, record.after),
        seconds_per_update=float(np.mean([report.seconds for report in record.reports])),
        **more,
    )


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
