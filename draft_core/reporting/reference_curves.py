"""Reference curves: what runs of the gallery left, without images and weights, to lay another run beside.

A curve is a folder with four files of a run's, so that whatever reads a run reads a curve.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from draft_core.errors import DraftError
from draft_core.reporting.run_record import EVALUATIONS, FACTS, METRICS, RECIPE, RunRecord, read_run, rewrite_rows

CURVES = Path(__file__).parent / "references"  # a folder for each, by its name
DIGITS = 6  # of a number in a curve
ABSOLUTE = re.compile(r"(?<![\w.:/-])/(?:[^\s'\"/]+/)+")  # the folders of an absolute path


def curve_names() -> list[str]:
    """The curves that ship with this package."""
    return sorted(folder.name for folder in CURVES.iterdir() if (folder / FACTS).is_file())


def read_reference(name: str) -> RunRecord:
    """The record of a curve by its name, or of a finished run by its folder.

    Raises:
        DraftError: if it is neither.
    """
    names = curve_names()
    if name in names:
        return read_run(CURVES / name)
    if Path(name).is_dir():
        return read_run(Path(name))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise DraftError(
        f"{name!r} is neither a reference curve nor the folder of a run",
        where="--against",
        next=f"{meant}the curves are {', '.join(names)}",
    )


def is_curve(record: RunRecord) -> bool:
    """Whether a record is that of a curve which ships with this package."""
    return record.folder.resolve().parent == CURVES.resolve()


def save_curve(record: RunRecord, folder: Path) -> None:
    """Writes a run's curve: recipe, facts, metrics and evaluations, without paths of the machine that it ran on.

    Arguments:
        folder: to make; its name is the curve's.
    """
    folder.mkdir(parents=True)
    facts = replace(record.facts, location=record.facts.model, scales=())
    (folder / FACTS).write_text(ABSOLUTE.sub("", json.dumps(asdict(facts), indent=1)), encoding="utf-8")
    (folder / RECIPE).write_text(ABSOLUTE.sub("", record.recipe_yaml), encoding="utf-8")
    rewrite_rows(folder / METRICS, [_rounded(report) for report in record.reports])
    rewrite_rows(folder / EVALUATIONS, [_rounded(evaluation) for evaluation in record.evaluations])


def _rounded(value: Any) -> Any:
    """Numbers to so many digits as are read on a page."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _rounded(item) for name, item in vars(value).items()})
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
