"""Builds, checks and installs all distributions from a clean clone of HEAD: `make release`, files in dist/.

Afterwards `dist/packages/` holds a wheel and a source archive of each, `dist/SHA256SUMS` their checksums, and
`dist/sbom.cdx.json` what an environment with all of them consists of (CycloneDX).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
CHECKED_REWARD = "jpeg"  # whose contract runs on the installed wheels: it needs no weights
SUMS, SBOM = "SHA256SUMS", "sbom.cdx.json"


class ReleaseError(Exception):
    """Why nothing is released, a sentence."""


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="a folder, which is made anew")
    parser.add_argument("--tag", default="", help="of the release; it must be v and the version")
    parser.add_argument("--set", action="append", default=[], help="a setting of `draft demo`, such as train.steps=2")
    given = parser.parse_args(words)
    try:
        release(given.output, given.tag, given.set)
    except ReleaseError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: exit code {error.returncode} of {' '.join(map(str, error.cmd))}")


def release(output: Path, tag: str, settings: Sequence[str]) -> None:
    """Fills `output`.

    Raises:
        ReleaseError: if what is committed cannot be released.
    """
    require_committed(ROOT)
    require_version(versions(ROOT), tag)
    shutil.rmtree(output, ignore_errors=True)
    packages = output / "packages"
    packages.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="draft-release-") as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "--quiet", "--no-local", ROOT, clone)
        build(clone, packages)
        run(sys.executable, "-m", "twine", "check", "--strict", *sorted(packages.iterdir()))
        python = installed(Path(folder) / "environment", packages, clone)
        try_installed(python, Path(folder), settings)
        words = ("--output-format", "JSON", "--output-reproducible", "--output-file", output / SBOM)
        run(sys.executable, "-m", "cyclonedx_py", "environment", *words, python)
    write_sums([*packages.iterdir(), output / SBOM], output / SUMS)
    print(f"wrote {output}: {len(list(packages.iterdir()))} files, {SUMS} and {SBOM}")


def projects(root: Path) -> list[Path]:
    """The folders of all distributions, the core first."""
    return [root, *sorted(path.parent for path in root.glob("plugins/*/pyproject.toml"))]


def versions(root: Path) -> dict[str, str]:
    """Distribution -> version; the core's is in its package."""
    found = {}
    for folder in projects(root):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        found[project["name"]] = project.get("version") or core_version(root)
    return found


def core_version(root: Path) -> str:
    """What `draft_core/__init__.py` says."""
    lines = (root / "draft_core" / "__init__.py").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("__version__ = ")]
    return line.partition("=")[2].strip().strip('"')


def require_version(found: dict[str, str], tag: str) -> None:
    """That all distributions have one version, and that the tag, where there is one, names it.

    Raises:
        ReleaseError: if not.
    """
    core = found["draft-core"]
    if others := [f"{name} {version}" for name, version in found.items() if version != core]:
        raise ReleaseError(f"draft-core is {core}, but {', '.join(others)}; give all the same version")
    if tag and tag != f"v{core}":
        raise ReleaseError(
            f"the tag {tag} is not v{core}, the version of the distributions; move the tag, or change it"
        )


def require_committed(root: Path) -> None:
    """That the tree is what its last commit says.

    Raises:
        ReleaseError: if something is changed or new.
    """
    changed = run("git", "-C", root, "status", "--porcelain", quiet=True).splitlines()
    if changed:
        raise ReleaseError(f"{changed[0][3:]} is not committed ({len(changed)} files in all); commit it or remove it")


def build(clone: Path, packages: Path) -> None:
    """A wheel and a source archive of each distribution, dated by the commit."""
    date = run("git", "-C", clone, "log", "-1", "--format=%ct", quiet=True).strip()
    for folder in projects(clone):
        words = ("--no-isolation", "--outdir", packages, folder)
        run(sys.executable, "-m", "build", *words, environment={**os.environ, "SOURCE_DATE_EPOCH": date}, quiet=True)
    names = {path.name for path in packages.iterdir()}
    assert len(names) == 2 * len(projects(clone)), sorted(names)


def installed(folder: Path, packages: Path, clone: Path) -> Path:
    """The Python of a new environment with all wheels; what others publish comes from the index, ours does not."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pinned = ("-c", clone / "constraints.txt") if sys.version_info >= (3, 11) else ()
    run(python, "-m", "pip", "install", "--quiet", *pinned, *sorted(packages.glob("*.whl")))
    return python


def try_installed(python: Path, folder: Path, settings: Sequence[str]) -> None:
    """Checks one reward and tunes the demonstration's model, where no source of this repository lies.

    Raises:
        ReleaseError: if the environment has another `draft_core` than that of the wheels.
    """
    where = folder / "empty"
    where.mkdir()
    program = "import draft_core, draft_emoji; print(draft_core.__file__); print(draft_emoji.__file__)"
    for file in run(python, "-I", "-c", program, cwd=where, quiet=True).splitlines():
        if not Path(file).is_relative_to(python.parents[1]):
            raise ReleaseError(f"{file} is imported, which no wheel installed")
    draft = (python, "-I", "-m", "draft_core")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run(*draft, "plugins", cwd=where, environment=environment)
    run(*draft, "rewards", "check", CHECKED_REWARD, cwd=where, environment=environment)
    given = [word for setting in settings for word in ("--set", setting)]
    run(*draft, "demo", *given, cwd=where, environment=environment)
    if not (where / "runs" / "demo" / "lora" / "pytorch_lora_weights.safetensors").is_file():
        raise ReleaseError("`draft demo` left no LoRA")


def write_sums(files: Iterable[Path], output: Path) -> None:
    """Writes a line for each file, as `sha256sum -c` reads them beside the files."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(files)]
    output.write_text("".join(lines), encoding="utf-8")


def run(*words: Any, cwd: Path | None = None, environment: dict[str, str] | None = None, quiet: bool = False) -> str:
    """Runs a program; its output is given if `quiet`, and shown otherwise.

    Raises:
        CalledProcessError: if it fails; what it said on the standard error is shown.
    """
    if not quiet:
        print("+", *words, flush=True)
    command = [str(word) for word in words]
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=pipe, encoding="utf-8", check=True)
    return done.stdout or ""


if __name__ == "__main__":
    main()
