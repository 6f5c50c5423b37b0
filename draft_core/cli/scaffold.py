"""Writes a new reward plugin as a folder of files that pass the contract at once.

The templates under `templates/reward` are the only source: `plugins/template` is what they give.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from draft_core.errors import DraftError
from draft_core.reporting.rendering import template_environment

_KIND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def reward_project(kind: str) -> dict[str, str]:
    """The files of a plugin that offers reward `kind`: path inside its folder -> content.

    Raises:
        DraftError: if `kind` is no possible name.
    """
    if not _KIND.fullmatch(kind):
        raise DraftError(
            f"{kind!r} cannot name a reward",
            where="name",
            next="use lower-case words joined by hyphens, like warm-light",
        )
    module = f"draft_reward_{kind.replace('-', '_')}"
    environment = template_environment("draft_core.cli", "templates/reward")
    values = {
        "kind": kind,
        "module": module,
        "name": "".join(word.capitalize() for word in kind.split("-")),
        "core_version": importlib.metadata.version("draft-core"),
    }
    places = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        f"src/{module}/__init__.py": "naming.py.j2",
        f"src/{module}/reward.py": "reward.py.j2",
        f"tests/test_{kind.replace('-', '_')}.py": "test.py.j2",
        ".github/workflows/test.yml": "ci.yml.j2",
    }
    return {path: environment.get_template(template).render(values) for path, template in places.items()}


def write_reward_project(kind: str, folder: Path) -> list[Path]:
    """Writes `reward_project(kind)` into `folder`; returns the files.

    Raises:
        DraftError: if `folder` is not empty, or `kind` is no possible name.
    """
    files = reward_project(kind)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DraftError("it exists and is not an empty folder", where=str(folder), next="choose another with --output")
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    return [folder / path for path in files]
