"""The notebooks run from their first cell to their last, one in a kernel, and are stored without outputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ROOT, require_installed, run_code
from tests.support.thorough import THOROUGH

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

# What must hold after the last cell, in the notebook's own names.
HOLDS = {
    "first-lora": """
assert {"report.html", "before_after.png", "lora"} <= {path.name for path in folder.iterdir()}
assert images.shape == (2, 1, 2, 3, 64, 64) and not torch.equal(images[0], images[1])
""",
    "own-reward": """
assert after.means()["warmth"] > before.means()["warmth"] and len(rewards) == 8
assert images.grad[:, 0].min() > 0 > images.grad[:, 2].max() and images.grad[:, 1].abs().max() == 0
""",
    "search": """
assert best.scores["emoji-clip"].numel() == 6 and found.totals.numel() == 5
assert found.totals.max() > found.totals.flatten()[0]
""",
}


@pytest.fixture(scope="module")
def nbformat() -> Any:
    """Imported here: it takes seconds, in every process that collects this file."""
    return pytest.importorskip("nbformat", reason="nbformat is not installed")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, nbformat: Any, tmp_path: Path) -> None:
    require_installed("draft-emoji", "draft-reward-jpeg")
    if path.stem != "first-lora" and not THOROUGH:  # a kernel imports everything anew
        names: dict[str, Any] = {}
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        for cell in [*cells, HOLDS[path.stem]]:
            run_code(cell, names)
        return
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(HOLDS[path.stem]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the machinery; the kernel is another process, with filters of its own
        client.NotebookClient(
            book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        ).execute()


def test_every_notebook_is_checked_and_stored_without_outputs(nbformat: Any) -> None:
    assert {path.stem for path in NOTEBOOKS} == set(HOLDS)
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        for cell in book.cells:
            assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), path.name
