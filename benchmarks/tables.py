"""Tables of the documentation, written by the programs that measure what stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


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
