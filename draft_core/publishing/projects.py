"""What the projects of all plugins share: a folder of files from templates, with licence, tests and workflows."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import jinja2

from draft_core.errors import DraftError
from draft_core.reporting.rendering import template_environment

License = Literal["Apache-2.0", "MIT", "none"]
LICENSES: tuple[License, ...] = ("Apache-2.0", "MIT", "none")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose a project is.

    Arguments:
        license: of its code; "none" leaves the choice open, and package indexes then refuse an upload.
        author: who stands in the licence and on the package's page; None leaves the name out.
    """

    license: License = "Apache-2.0"
    author: str | None = None


@dataclass(frozen=True, kw_only=True)
class Project:
    """One plugin's project before it is written.

    Arguments:
        what: "reward", "method" or "model": the folder of its templates, and its place in the distribution's name.
        name: the kind or alias, lower-case words joined by hyphens.
        description: one line for the package's page.
        files: path inside the project -> name of its template; "{module}" and "{stem}" in it are filled in.
        values: what the templates name, besides what all have.
        dependencies: requirements besides draft-core.
        check: a shell command that tries the built wheel, or None.

    Raises:
        DraftError: at construction, if `name` is no possible name.
    """

    what: Literal["reward", "method", "model"]
    name: str
    description: str
    files: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    dependencies: tuple[str, ...] = ("torch>=2.6",)
    check: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DraftError(
                f"{self.name!r} cannot name a {self.what}",
                where="name",
                next="use lower-case words joined by hyphens, like warm-light",
            )

    @property
    def distribution(self) -> str:
        """The name of the package, such as draft-reward-warm-light."""
        return f"draft-{self.what}-{self.name}"

    @property
    def module(self) -> str:
        """The name of the Python module, such as draft_reward_warm_light."""
        return self.distribution.replace("-", "_")

    def rendered(self, owner: Owner) -> dict[str, str]:
        """The files: path inside the project's folder -> content."""
        stem = self.name.replace("-", "_")
        license = None if owner.license == "none" else owner.license
        values = {
            "kind": self.name,
            "module": self.module,
            "distribution": self.distribution,
            "name": "".join(word.capitalize() for word in self.name.split("-")),
            "description": self.description,
            "keyword": self.what,
            "license": license,
            "author": owner.author,
            "year": date.today().year,
            "core_version": importlib.metadata.version("draft-core"),
            "check": self.check,
            **self.values,
        }
        values["dependencies"] = [f"draft-core>={values['core_version']}", *self.dependencies]
        templates = {
            "pyproject.toml": "project/pyproject.toml.j2",
            ".github/workflows/test.yml": "project/test.yml.j2",
            ".github/workflows/release.yml": "project/release.yml.j2",
            **({"LICENSE": f"project/{license}.txt.j2"} if license else {}),
            **{path.format(module=self.module, stem=stem): f"{self.what}/{name}" for path, name in self.files.items()},
        }
        environment = _environment()
        return {path: environment.get_template(name).render(values) for path, name in templates.items()}


def _environment() -> jinja2.Environment:
    environment = template_environment("draft_core.publishing")
    environment.filters["toml"] = json.dumps  # strings of TOML are written as those of JSON
    environment.filters["python"] = _python
    return environment


def _python(words: Mapping[str, Any]) -> str:
    """A mapping as ruff would format it on one line."""
    return f"{{{', '.join(f'{json.dumps(name)}: {value!r}' for name, value in words.items())}}}"


def require_empty(folder: Path) -> None:
    """That a project may be written into `folder`.

    Raises:
        DraftError: if it is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DraftError("it exists and is not an empty folder", where=str(folder), next="choose another with --output")


def write_files(files: Mapping[str, str], folder: Path, copies: Mapping[str, Path] | None = None) -> list[Path]:
    """Writes a project into `folder`; returns the files, and the folders that were copied.

    Arguments:
        files: path inside the folder -> content.
        folder: which must be empty, or not there.
        copies: path inside the folder -> the file or folder that is copied there.

    Raises:
        DraftError: if `folder` is not empty.
    """
    require_empty(folder)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    for path, source in (copies or {}).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    return [folder / path for path in [*files, *(copies or {})]]
