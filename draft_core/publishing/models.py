"""Writes the project of a model: an alias for a pipeline in diffusers' format, or for a LoRA on one, with prompts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draft_core.errors import DraftError
from draft_core.publishing.projects import Owner, Project, write_files
from draft_core.recipe.resolve import MODEL_INDEXES
from draft_core.registry.catalog import Catalog
from draft_core.registry.specs import HUB_NAME

# What may hold code: pickles of torch under the names that they have in model folders.
EXECUTABLE = {".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".py"}
MOST_MEGABYTES = 100  # of one file on the Python Package Index, unless one asks for more
PROMPTS = ("a red apple on a table", "two cats on a sofa", "a lighthouse at night")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What an alias stands for.

    Arguments:
        base: a folder in diffusers' format, which is copied into the project, "owner/name" on the hub, or an alias of
            an installed plugin, which the project then requires.
        revision: of a repository on the hub, a commit for choice.
        lora: the file or folder of a LoRA, or the folder of a run; it is copied too.
        prompts: a text file with a prompt a line; None writes three to begin with.
        license: of the weights.
    """

    base: str
    revision: str | None = None
    lora: Path | None = None
    prompts: Path | None = None
    license: str = "none yet"


def write_model_project(
    alias: str, folder: Path, source: ModelSource, catalog: Catalog, owner: Owner | None = None
) -> list[Path]:
    """Writes the project of a plugin that offers the pipeline `alias` into `folder`; returns what was written.

    Raises:
        DraftError: if `folder` is not empty, `alias` is no possible name, or there is no such model, LoRA or file of
            prompts.
    """
    copies: dict[str, Path] = {}
    is_repository = _is_repository(source.base, catalog)
    is_folder = not is_repository and source.base not in catalog.pretrained
    base_name = Path(source.base).name if is_folder else source.base
    if source.revision is not None and not is_repository:
        raise DraftError(
            f"{source.base} is no repository on the hub",
            where="--revision",
            next="leave it out, or give --base owner/name",
        )
    values: dict[str, Any] = {
        "base": None,
        "repository": source.base if is_repository else None,
        "revision": source.revision,
        "call": {},
        "lora": source.lora is not None,
        "summary": f"a LoRA on {base_name}" if source.lora is not None else f"the pipeline {alias}",
        "weights_license": source.license,
    }
    dependencies: tuple[str, ...] = ("torch>=2.6",)
    prompts = _prompts(source.prompts)
    values |= {"prompts": prompts, "first_prompt": prompts[0]}
    if source.base in catalog.pretrained:
        if source.lora is None:
            raise DraftError(
                f"{source.base!r} is an alias already",
                where="--base",
                next="give the folder of another model, or a LoRA with --lora",
            )
        spec = catalog.pretrained[source.base].spec
        values["call"] = dict(spec.call)
        if spec.repository is not None and spec.lora is None:
            values |= {"repository": spec.repository, "revision": spec.revision}
        else:
            values["base"], requirement = _installed(source.base, catalog)
            dependencies = (requirement, *dependencies)
    elif is_folder:
        copies["src/{module}/model"] = _model_folder(Path(source.base).expanduser(), source.base, catalog)
    if source.lora is not None:
        from draft_core.adapters.files import lora_files  # it brings torch

        copies |= {f"src/{{module}}/lora/{name}": file for name, file in lora_files(source.lora).items()}
    project = Project(
        what="model",
        name=alias,
        description=f"A diffusion model for draft-core: {alias}",
        files={
            "README.md": "README.md.j2",
            "src/{module}/__init__.py": "naming.py.j2",
            "src/{module}/prompts.txt": "prompts.txt.j2",
            "tests/test_{stem}.py": "test.py.j2",
        },
        values=values,
        dependencies=dependencies,
        check="draft plugins",
    )
    placed = {path.format(module=project.module): file for path, file in copies.items()}
    return write_files(project.rendered(owner or Owner()), folder, placed)


def large_files(written: list[Path]) -> list[Path]:
    """Those files of a project that a package index does not take without being asked."""
    files = [file for path in written for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [file for file in files if file.is_file() and file.stat().st_size > MOST_MEGABYTES * 1e6]


def _prompts(file: Path | None) -> list[str]:
    if file is None:
        return list(PROMPTS)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DraftError(
            f"it cannot be read ({error})", where=f"--prompts {file}", next="give a text file with a prompt a line"
        ) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise DraftError("it holds no prompt", where=f"--prompts {file}", next="write one a line")
    return prompts


def _installed(alias: str, catalog: Catalog) -> tuple[dict[str, Any], str]:
    """Where the folder of an installed alias lies inside its module, and the requirement that brings it."""
    entry = catalog.pretrained[alias]
    where = f"--base {alias}"
    if entry.spec.lora is not None:
        raise DraftError("it is a LoRA itself", where=where, next="give the model that it stands on")
    found = importlib.util.find_spec(entry.module) if entry.module else None
    package = Path(found.origin).parent if found and found.origin else None
    folder = entry.spec.folder
    if entry.module is None or package is None or folder is None or not folder.is_relative_to(package):
        raise DraftError("its folder is not in its package", where=where, next="give the folder itself")
    parts = folder.relative_to(package).parts
    return {"module": entry.module, "parts": parts}, f"{entry.distribution.name}>={entry.distribution.version}"


def _is_repository(base: str, catalog: Catalog) -> bool:
    """Whether it has the form of a name on the hub, and is neither an alias nor there."""
    return base not in catalog.pretrained and not Path(base).exists() and HUB_NAME.fullmatch(base) is not None


def _model_folder(folder: Path, named: str, catalog: Catalog) -> Path:
    if not folder.is_dir():
        raise catalog.unknown("model", named, catalog.pretrained, where="--base")
    if not any((folder / index).is_file() for index in MODEL_INDEXES):
        raise DraftError(
            f"it holds no {MODEL_INDEXES[0]}", where=f"--base {folder}", next="give a folder in diffusers' format"
        )
    if executable := [path for path in sorted(folder.rglob("*")) if path.suffix in EXECUTABLE]:
        raise DraftError(
            f"{executable[0].relative_to(folder)} may hold code",
            where=f"--base {folder}",
            next="save the pipeline again, `pipe.save_pretrained(folder, safe_serialization=True)`",
        )
    return folder
