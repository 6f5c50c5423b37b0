"""The map in docs/index.md is the folder listing, and the pages' paths and pieces of code are those of the tree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from draft_core import load_catalog

ROOT = Path(__file__).parents[2]
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return INDEX.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_map_is_the_folder_listing() -> None:
    listed = re.findall(r"^\| `([^`]+)` \|", section("Where things are").partition("Beside it")[0], flags=re.MULTILINE)
    core = ROOT / "draft_core"
    folders = {f"{path.parent.name}/" for path in core.glob("*/__init__.py")}
    files = {path.name for path in core.glob("*.py") if not path.name.startswith("__")}
    assert sorted(listed) == sorted(folders | files)


def test_paths_of_the_index_exist() -> None:
    paths = re.findall(r"`((?:draft_core|tests|plugins|benchmarks|recipes|examples)/[^`]*)`", INDEX)
    assert "draft_core/adapters/adapter.py" in paths
    for path in paths:
        assert (ROOT / path).exists(), path
    for template in re.findall(r"`(\w+\.html\.j2)`", INDEX):
        assert (ROOT / "draft_core" / "reporting" / "templates" / template).is_file()


@pytest.mark.parametrize("what", ["a reward", "a method", "an adapter", "a metric", "a section or page of the report"])
def test_the_index_says_where_to_add(what: str) -> None:
    assert f"\n| {what}" in section("Where do I add ...")


def test_the_example_of_the_readme_runs() -> None:
    if missing := {"draft-emoji", "draft-reward-jpeg"} - load_catalog().versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert block.count("num_inference_steps=20") == 1
    names: dict[str, Any] = {}
    block = block.replace("num_inference_steps=20", "num_inference_steps=2")
    exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    assert len(names["rollout"].images) == 3, "a sample and two re-noised copies"
    assert any(parameter.grad is not None for parameter in names["pipe"].unet.parameters())
