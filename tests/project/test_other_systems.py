"""Nothing needs a POSIX system to be imported, and what a run writes can be named on any system."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from draft_core.reporting import run_record
from draft_core.runs.folder import CHECKPOINTS, LOCK
from tests.support.thorough import in_full

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("draft_core/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py"), *ROOT.glob("tools/*.py")])
HIDDEN = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "crypt", "posix_ipc")

# Imports every module as Windows would have it: what is named here is missing, and so are the names below.
PROGRAM = """
import importlib, os, pathlib, pkgutil, signal, sys

hidden, packages = sys.argv[1].split(","), sys.argv[2].split(",")
for name in filter(None, sys.argv[4].split(",")):  # not ours, and nobody's business below
    importlib.import_module(name)

class Hide:
    def find_spec(self, name, path=None, target=None):
        asking = sys._getframe(1)
        while asking and not asking.f_code.co_filename.startswith(tuple(sys.argv[3].split(","))):
            if "importlib" not in asking.f_code.co_filename:
                return None  # another library's own business
            asking = asking.f_back
        if name in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in hidden:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hide())
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
for name in ("fork", "killpg", "getuid", "geteuid", "getpgid", "setsid", "sysconf", "statvfs", "uname"):
    delattr(os, name)
failed = []
for package in packages:
    found = importlib.import_module(package)
    names = [module.name for module in pkgutil.walk_packages(found.__path__, package + ".")]
    for name in [name for name in names if not name.endswith("__main__") and ".example" not in name]:
        try:
            importlib.import_module(name)
        except Exception as error:
            missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
            if name.endswith(".reference") and missing and missing not in hidden:
                continue  # what a reward is compared with needs a package that is not installed
            failed.append(f"{name}: {type(error).__name__}: {error}")
print(len(sys.modules))
sys.exit("\\n".join(failed) or 0)
"""


LIBRARIES = "torch,diffusers,transformers,peft,accelerate,huggingface_hub,matplotlib.pyplot,torchvision"


def imported(packages: list[str], *, path: list[Path], first: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n{PROGRAM}"
    ours = [ROOT / "draft_core", ROOT / "plugins", *path]
    words = [",".join(HIDDEN), ",".join(packages), ",".join(map(str, ours)), first]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *words], capture_output=True, text=True, timeout=600, cwd=ROOT
    )


@in_full
def test_every_module_is_imported_without_what_windows_lacks() -> None:
    packages = ["draft_core", *(path.parent.name for path in ROOT.glob("plugins/*/src/*/__init__.py"))]
    done = imported(packages, path=[], first=LIBRARIES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", ["import fcntl", "import signal; signal.SIGKILL", "from os import killpg"])
def test_a_module_that_needs_it_would_be_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "draft_posix").mkdir()
    (tmp_path / "draft_posix" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "draft_posix" / "needs.py").write_text(line + "\n", encoding="utf-8")
    done = imported(["draft_posix"], path=[tmp_path])
    assert done.returncode != 0
    assert "draft_posix.needs" in done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_imports_at_once_what_windows_lacks(path: Path) -> None:
    assert posix_imports(ast.parse(path.read_text(encoding="utf-8"))) == []


def posix_imports(tree: ast.Module) -> list[str]:
    """Modules of POSIX systems that are imported outside of functions."""
    found = []
    for statement in tree.body:
        parts = [] if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else list(ast.walk(statement))
        found += [alias.name for part in parts if isinstance(part, ast.Import) for alias in part.names]
        found += [str(part.module) for part in parts if isinstance(part, ast.ImportFrom)]
    return [name for name in found if name.partition(".")[0] in HIDDEN]


def test_such_an_import_would_be_found() -> None:
    source = "import os, pwd\nif os.name:\n    from fcntl import flock\ndef f():\n    import resource\n"
    assert posix_imports(ast.parse(source)) == ["pwd", "fcntl"]


def texts_without_encoding(tree: ast.AST) -> list[int]:
    """The lines that open a text file in the encoding of the machine."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = 0 if isinstance(node.func, ast.Attribute) else 1
        modes = [*node.args[place : place + 1], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        words = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        is_text_mode = any(re.fullmatch(r"[rwaxt+]+", word) for word in words)
        is_bare = name == "open" and isinstance(node.func, ast.Name) and not words
        if name in ("read_text", "write_text") or (name == "open" and (is_text_mode or is_bare)):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_are_read_and_written_as_utf_8(path: Path) -> None:
    assert texts_without_encoding(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_a_text_in_the_encoding_of_the_machine_would_be_found() -> None:
    source = (
        "p.read_text()\np.open('w')\nopen(p)\nopen(p, 'a')\np.open('rb')\nopen(p, 'w', encoding='utf-8')\np.open()\n"
    )
    assert texts_without_encoding(ast.parse(source)) == [1, 2, 3, 4]


def test_what_a_run_writes_has_names_for_any_system() -> None:
    names = [value for name, value in vars(run_record).items() if name.isupper() and isinstance(value, str)]
    names += [CHECKPOINTS, LOCK, run_record.scale_name(0.25), run_record.scale_name(-1.5), f"{12:06d}"]
    assert "metrics.jsonl" in names
    for name in names:
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]|[. ]$', name), name
        assert name.partition(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}, name
