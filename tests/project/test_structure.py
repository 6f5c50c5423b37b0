"""The folders keep their limits, and the import contracts catch what they are for."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import SLOW
from tests.support.thorough import TRIED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
CORE = ROOT / "draft_core"
MODULES = sorted(CORE.rglob("*.py"))
FOLDERS = sorted({module.parent for module in MODULES})
MOST_MODULES, MOST_LINES, MOST_METHODS = 12, 350, 15
MOST_CONTRACT_LINES, MOST_MENTIONS = 100, 3


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def methods(tree: ast.AST) -> dict[str, int]:
    """Class -> how many functions its body defines."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: sum(isinstance(part, functions) for part in node.body) for node in classes}


def contracts() -> str:
    """The part of pyproject.toml that import-linter reads."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = re.split(r"(?m)^(?=\[)", text)
    return "".join(table for table in tables if table.startswith(("[tool.importlinter", "[[tool.importlinter")))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= MOST_MODULES


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_is_short_and_so_are_its_classes(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert {name: count for name, count in methods(ast.parse(text)).items() if count > MOST_METHODS} == {}


def test_the_methods_of_a_class_are_counted() -> None:
    source = "class A:\n    @property\n    def b(self): ...\n    async def c(self):\n        def d(): ...\n"
    assert methods(ast.parse(source)) == {"A": 2}


def test_a_module_opens_with_what_it_does() -> None:
    lists = [
        name_of(module)
        for module in MODULES
        if "May import" in (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "")
    ]
    assert lists == []
    assert [
        name_of(module) for module in MODULES if not ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    ] == []


@pytest.mark.parametrize("slow", SLOW)
def test_what_is_listed_as_slow_is_there(slow: str) -> None:
    pattern, _, name = slow.partition("::")
    files = list(ROOT.glob(pattern))
    assert files
    assert not name or any(re.search(rf"(?:def|class) {name}\b", file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("name", TRIED)
def test_what_is_left_to_a_thorough_run_is_there(name: str, request: pytest.FixtureRequest) -> None:
    """And each word is that of a case, where the whole of the test is collected too."""
    file, _, function = name.partition("::")
    assert re.search(rf"def {function}\(", (ROOT / file).read_text(encoding="utf-8"))
    found = [item.nodeid for item in request.session.items if item.nodeid.partition("[")[0] == name]
    assert not found or all(any(word in case.partition("[")[2] for case in found) for word in TRIED[name])


def test_the_contracts_are_short_and_name_no_package_often() -> None:
    text = contracts()
    assert len(text.strip().splitlines()) <= MOST_CONTRACT_LINES
    settings = tomllib.loads(text)["tool"]["importlinter"]
    named = Counter(settings["root_packages"])
    for contract in settings["contracts"]:
        container = contract.get("containers", [""])[0]
        named.update(contract.get("containers", []))
        for layer in contract.get("layers", []):
            named.update(f"{container}.{part}" if container else part for part in re.findall(r"\w+", layer))
        named.update([*contract.get("source_modules", []), *contract.get("forbidden_modules", [])])
        named.update(line.partition(" -> ")[2] for line in contract.get("ignore_imports", []))
    ours = {name: count for name, count in named.items() if name.startswith("draft_")}
    top = [folder for folder in FOLDERS if folder.parent == CORE]  # a folder within one of these is in its layer
    assert {f"draft_core.{folder.name}" for folder in top} <= set(ours)
    assert {name: count for name, count in ours.items() if count > MOST_MENTIONS} == {}


# Each contract, broken in a copy of the tree: (its name, a file, the line added to it).
PLANTED = {
    "upward": ("an import runs down", "draft_core/errors.py", "import draft_core.runs.build"),
    "sideways": ("an import runs down", "draft_core/sampling/seams.py", "import draft_core.registry.config"),
    "a module without a layer": ("an import runs down", "draft_core/further.py", ""),
    "torch among the names": ("what can be named", "draft_core/registry/specs.py", "import torch"),
    "names among the tensors": (
        "what computes",
        "draft_core/training/trainer.py",
        "import draft_core.registry.catalog",
    ),
    "pydantic among the tensors": ("what computes", "draft_core/sampling/seams.py", "import pydantic"),
    "a plugin in the core": ("the core knows no plugin", "draft_core/cli/app.py", "import draft_emoji"),
    "a plugin in a plugin": ("the core knows no plugin", "jpeg/reward.py", "import draft_reward_template"),
    "a private module in a plugin": ("a plugin builds", "jpeg/reward.py", "import draft_core.sampling.sampler"),
    "a private module of a public package": (
        "a plugin builds",
        "jpeg/reward.py",
        "import draft_core.rewards.objective",
    ),
    "torch in a naming file": ("a plugin's naming file", "jpeg/__init__.py", "import torch"),
    "the reference in a reward": ("no reward imports", "jpeg/reward.py", "import draft_reward_jpeg.reference"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python files of core and plugins, and pyproject.toml."""
    copy = tmp_path_factory.mktemp("structure")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for file in [*MODULES, *ROOT.glob("plugins/*/src/**/*.py")]:
        target = copy / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return copy


def lint_imports(tree: Path) -> tuple[int, list[str]]:
    """The exit code of lint-imports, and the names of the broken contracts."""
    paths = [tree, *sorted(tree.glob("plugins/*/src"))]
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run = subprocess.run(
        [sys.executable, "-c", program, "--no-logo", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, re.findall(r"^(.+) BROKEN", run.stdout, flags=re.MULTILINE)


def test_all_contracts_are_kept(copy: Path) -> None:
    assert lint_imports(copy) == (0, [])


@pytest.mark.parametrize(("contract", "file", "line"), PLANTED.values(), ids=PLANTED)
def test_a_contract_catches_what_it_is_for(copy: Path, contract: str, file: str, line: str) -> None:
    path = copy / (file if file.startswith("draft_core") else f"plugins/jpeg/src/draft_reward_{file}")
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        code, broken = lint_imports(copy)
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")
    assert code == 1
    assert any(name.startswith(contract) for name in broken), broken
