"""What another Python must have installed so that this core's half for rewards runs in it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Of this core's own requirements: what plans, samples and reports needs none of.
NAMES = (
    "annotated-types",
    "huggingface-hub",
    "numpy",
    "packaging",
    "pillow",
    "pluggy",
    "pydantic",
    "ruamel-yaml",
    "safetensors",
    "torch",
)


def core_requirements() -> list[str]:
    """The core's requirements that a worker has too, with their lowest versions, as pip takes them."""
    found = [Requirement(text) for text in importlib.metadata.requires("draft-core") or ()]
    return sorted(str(needed) for needed in found if canonicalize_name(needed.name) in NAMES and not needed.marker)


def pip_install(python: Path, requirements: list[str]) -> str:
    """The command that installs requirements there."""
    words = [f"'{text}'" if set(text) & set("<>; @[") else text for text in requirements]
    return f"{python} -m pip install {' '.join(words)}"
