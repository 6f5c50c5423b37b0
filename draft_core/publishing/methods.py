"""Writes the project of a method: a plan of the DRaFT family, or a learner of its own."""

from __future__ import annotations

from pathlib import Path

from draft_core.publishing.projects import Owner, Project, write_files

PLAN_SUMMARY = "gradient through every other step"
LEARNER_SUMMARY = "regression on the samples with the highest scores"


def method_project(kind: str, *, learner: bool = False, owner: Owner | None = None) -> dict[str, str]:
    """The files of a plugin that offers method `kind`: path inside its folder -> content.

    Arguments:
        kind: its name in recipes.
        learner: whether it has a learner of its own; without one it differs from DRaFT in its plan alone.
        owner: whose it is.

    Raises:
        DraftError: if `kind` is no possible name.
    """
    files = {
        "README.md": "README.md.j2",
        "src/{module}/__init__.py": "naming.py.j2",
        **({"src/{module}/learner.py": "learner.py.j2"} if learner else {}),
        "tests/test_{stem}.py": "test.py.j2",
    }
    project = Project(
        what="method",
        name=kind,
        description=f"A method for tuning diffusion models on rewards: {kind}",
        files=files,
        values={"learner": learner, "summary": LEARNER_SUMMARY if learner else PLAN_SUMMARY},
        check="draft plugins",
    )
    return project.rendered(owner or Owner())


def write_method_project(kind: str, folder: Path, *, learner: bool = False, owner: Owner | None = None) -> list[Path]:
    """Writes `method_project(...)` into `folder`; returns the files.

    Raises:
        DraftError: if `folder` is not empty, or `kind` is no possible name.
    """
    return write_files(method_project(kind, learner=learner, owner=owner), folder)
