"""Makes a reference curve of a finished run: `python benchmarks/reference_curve.py RUN NAME`.

It lands in `draft_core/reporting/references/NAME`, and `draft report MINE --against NAME` lays a run beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from draft_core.reporting.reference_curves import CURVES, save_curve
from draft_core.reporting.run_record import read_run


def main(run: Path, name: str) -> None:
    save_curve(read_run(run), CURVES / name)
    print(f"wrote {CURVES / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
