"""Python environments made of a list of packages, each once: by uv where it is installed, by venv and pip elsewhere.

An environment lies in a folder whose name is a digest of all that decides what is in it. What counts as installed of
draft-core there are its rewards' needs alone, so that a plugin which requires draft-core does not bring the rest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from draft_core.errors import DraftError
from draft_core.workers.needs import core_requirements

CACHE = "DRAFT_CACHE"  # the environment variable that names another folder for them
MADE = "made.json"  # in an environment's folder, written last
LETTERS = 16  # of the digest
LAST_LINES = 6  # of what the installer said that a message repeats


def made_python(requirements: Sequence[str]) -> Path:
    """The interpreter of the environment with these packages, which is made if there is none.

    Raises:
        DraftError: if it cannot be made; with the last lines of what the installer said.
    """
    packages = sorted({*requirements, *_own(requirements)})
    folder = cache_folder() / "environments" / _digest(packages)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / MADE).is_file():
        return python
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / MADE).is_file():
                _make(folder, python, packages)
    except OSError as error:
        raise DraftError(
            f"an environment cannot be made there ({error.strerror or error})",
            where=str(folder),
            next=f"make room, or name another folder in {CACHE}",
        ) from error
    return python


def cache_folder() -> Path:
    """Where environments are kept: as `DRAFT_CACHE` says, else the user's folder for caches."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "draft-core"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "draft-core"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "draft-core"


def _own(requirements: Sequence[str]) -> list[str]:
    """What rewards need of the core, where the list does not say otherwise; torch in the version that is here."""
    named = {canonicalize_name(Requirement(text).name) for text in requirements}
    here = importlib.metadata.version("torch").partition("+")[0]  # an index has no +cpu
    needed = [text for text in core_requirements() if canonicalize_name(Requirement(text).name) not in named]
    return [f"torch=={here}" if Requirement(text).name == "torch" else text for text in needed]


def _digest(packages: Sequence[str]) -> str:
    """Of the list, this Python and the kind of machine."""
    what = [*packages, sys.version, sys.platform, sys.base_prefix, importlib.metadata.version("draft-core")]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:LETTERS]


def _make(folder: Path, python: Path, packages: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # one that was interrupted
    print(f"draft-core: making an environment with {', '.join(packages)} in {folder}, once", file=sys.stderr)
    uv = shutil.which("uv")
    if uv:
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], folder)
        installer = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        installer = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _write_core(folder, python)
    _run([*installer, *packages], folder)
    (folder / MADE).write_text(json.dumps(list(packages)), encoding="utf-8")


def _write_core(folder: Path, python: Path) -> None:
    """Says to installers that draft-core is there, with no requirements: a worker is given this core's own files."""
    found = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    version = importlib.metadata.version("draft-core")
    metadata = Path(found.strip()) / f"draft_core-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: draft-core\nVersion: {version}\n", encoding="utf-8"
    )
    (metadata / "INSTALLER").write_text("draft-core\n", encoding="utf-8")
    (metadata / "RECORD").write_text("", encoding="utf-8")


def _run(words: Sequence[str], folder: Path) -> str:
    """What a command printed.

    Raises:
        DraftError: if it fails, with its last lines.
    """
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise DraftError(
            f"{Path(words[0]).name} could not make it: {' | '.join(lines[-LAST_LINES:])}",
            where=f"environment {folder}",
            next="correct environment.requirements",
        )
    return done.stdout
