"""Writes the tables of docs/models.md from what the tests measure: `python -m tests.support.models_table`.

Names of tables behind it, such as `classes`, write these alone.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.tuners.lora import LoraLayer

from draft_core import Draft, DraftK, DraftLV, FlowBPSparse
from draft_core.adapters.lora import ATTENTION, add_lora
from draft_core.sampling.pipelines import find_denoisers
from tests.support.class_checks import CHECKS, class_cells, verdict
from tests.support.drive import (
    call_of,
    gradient_error,
    plain,
    posterior_mean_error,
    samples_difference,
    schedule_differences,
    schedule_gradient_error,
)
from tests.support.families import FAMILIES, Family
from tests.support.gaussians import gaussian_verdict, scheduler_names
from tests.support.image_classes import IMAGE_CLASSES
from tests.support.schedules import SCHEDULES, Schedule
from tests.support.video_classes import ODD_CLASSES, VIDEO_CLASSES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
FAMILY_HEADER = ("family", "pipeline class", "guidance here", "samples", "gradient", "LoRA layers", "notes")
SCHEDULE_HEADER = ("scheduler", "order", "samples", "gradient", "posterior mean", "refused")
CLASS_HEADER = ("pipeline class", "guidance here", *CHECKS, "notes")
GAUSSIAN_HEADER = ("class", "draws noise", "error")
CLASSES = (*IMAGE_CLASSES, *VIDEO_CLASSES, *ODD_CLASSES)
MEASURED = ("samples", "gradient", "posterior mean")  # the columns that `family_facts` and `schedule_facts` leave out


def family_facts(family: Family) -> dict[str, str]:
    """The columns of a family's row that need no run."""
    pipe = family.pipe()
    name = type(pipe).__name__
    add_lora(pipe, rank=1)
    adapted = [
        layer
        for denoiser in find_denoisers(pipe).values()
        for layer, module in denoiser.named_modules()
        if isinstance(module, LoraLayer)
    ]
    further = sorted({layer.rpartition(".")[2] for layer in adapted if not layer.endswith(ATTENTION)})
    layers = f"{len(adapted)}" + (f", with {', '.join(further)}" if further else "")
    values = (family.name, f"`{name}`", family.guidance, layers, family.note)
    return dict(zip(("family", "pipeline class", "guidance here", "LoRA layers", "notes"), values, strict=True))


def schedule_facts(schedule: Schedule) -> dict[str, str]:
    """The columns of a scheduler's row that need no run."""
    name, *what = schedule.name.split(",")
    return {"scheduler": ",".join([f"`{name}`", *what]), "order": schedule.order, "refused": schedule.refuses}


def family_row(family: Family) -> dict[str, str]:
    """All columns, measured."""
    pipe = family.pipe()
    expected = plain(pipe, call_of(family))
    methods = (DraftK(k=1), Draft(), DraftLV(resamples=1), FlowBPSparse(k=1))
    worst = max(samples_difference(family, pipe, method, expected) for method in methods)
    error = gradient_error(family, family.pipe(family.precise))
    return {**family_facts(family), "samples": verdict(worst), "gradient": verdict(error)}


def schedule_row(schedule: Schedule) -> dict[str, str]:
    """All columns, measured."""
    methods: list[Any] = [DraftK(k=1), Draft(), FlowBPSparse(k=2)]
    methods += [DraftLV(resamples=1)] if schedule.level else []
    return {
        **schedule_facts(schedule),
        "samples": verdict(schedule_differences(schedule, methods)),
        "gradient": verdict(schedule_gradient_error(schedule)),
        "posterior mean": verdict(posterior_mean_error(schedule)) if schedule.level else "refused",
    }


def gaussian_rows() -> list[dict[str, str]]:
    """A row for each scheduler that diffusers exports, measured."""
    names = scheduler_names()
    values = [(f"`{name}`", *gaussian_verdict(name)) for name in names]
    return [dict(zip(GAUSSIAN_HEADER, row, strict=True)) for row in values]


def table(header: tuple[str, ...], rows: list[dict[str, str]]) -> str:
    lines = [header, tuple("---" for _ in header), *(tuple(row[column] for column in header) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def read_tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a page, each as its rows."""
    tables: list[list[dict[str, str]]] = []
    header: list[str] = []
    for line in page.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not header:
            header = cells
            tables.append([])
        elif set("".join(cells)) != {"-"}:
            tables[-1].append(dict(zip(header, cells, strict=True)))
    return tables


def with_table(page: str, name: str, text: str) -> str:
    """The page with the table between its two marks replaced."""
    start, end = f"<!-- {name}: written by tests/support/models_table.py -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{text}\n\n{end}{after}"


TABLES: dict[str, Any] = {
    "families": lambda: table(FAMILY_HEADER, [family_row(one) for one in FAMILIES]),
    "classes": lambda: table(CLASS_HEADER, [class_cells(one) for one in CLASSES]),
    "schedulers": lambda: table(SCHEDULE_HEADER, [schedule_row(one) for one in SCHEDULES]),
    "gaussians": lambda: table(GAUSSIAN_HEADER, gaussian_rows()),
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    asked = names or list(TABLES)
    measured: dict[str, Any] = {"families": FAMILIES, "classes": CLASSES, "schedulers": SCHEDULES}
    if missing := [one.name for name in asked for one in measured.get(name, ()) if one.missing]:
        sys.exit(f"cannot be measured here: {', '.join(missing)}")
    for name in asked:
        PAGE.write_text(with_table(PAGE.read_text(), name, TABLES[name]()))


if __name__ == "__main__":
    main(sys.argv[1:])
