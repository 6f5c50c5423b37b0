"""Tables of the documentation, written by the programs that measure what stands in them, and what they all tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(tables: Mapping[str, str], document: Path | None) -> None:
    """Prints each table, and writes it between the markers of its name; None writes nothing."""
    for name, table in tables.items():
        print(f"\n{table}")
        if document is not None:
            begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
            before, _, rest = document.read_text().partition(begin)
            _, _, after = rest.partition(end)
            document.write_text(f"{before}{begin}\n{table}\n{end}{after}")


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation, the mean alone of one."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    return f"{fmean(values):{form}} ± {stdev(values):{form.lstrip('+')}}"


def remembered(file: Path, make: Callable[[], Any]) -> Any:
    """What the JSON file holds, which `make()` gives where there is none yet; a killed program leaves no half of it."""
    if not file.is_file():
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(made), encoding="utf-8")
        aside.rename(file)
    return json.loads(file.read_text(encoding="utf-8"))


def in_turns(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor of each work, which take turns; a first round, which sets up, does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begun = time.process_time()
            work()
            taken[name] += [time.process_time() - begun] if number else []
    return {name: median(seconds) for name, seconds in taken.items()}


def crossing(points: Sequence[Mapping[str, float]], name: str, wanted: float) -> dict[str, float] | None:
    """Where a number has first risen so far, on a straight line between two of the points; None if nowhere."""
    for before, after in pairwise(points):
        if after[name] >= wanted:
            share = (wanted - before[name]) / (after[name] - before[name])
            return {key: before[key] + share * (after[key] - before[key]) for key in before}
    return None
