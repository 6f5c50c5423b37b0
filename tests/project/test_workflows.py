"""Our workflows and those that `draft new-reward` writes are sound by their linters; every action is pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from draft_core.publishing.rewards import reward_project
from draft_core.recipe.yaml_text import parse_yaml
from tests.support.pages import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"


def texts() -> dict[str, str]:
    """Every workflow that is run here, or written by `draft new-reward`."""
    files = reward_project("warm-light")
    return {
        **{path.name: path.read_text(encoding="utf-8") for path in WORKFLOWS},
        **{f"new-reward-{name}.yml": files[f".github/workflows/{name}.yml"] for name in ("test", "release")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all of them, and with Dependabot's settings."""
    folder = tmp_path_factory.mktemp("workflows")
    for name, text in texts().items():
        path = folder / ".github" / "workflows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copy(ROOT / ".github" / "dependabot.yml", folder / ".github")
    return folder


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("zizmor", path=Path(sys.executable).parent) or shutil.which("zizmor")
    if program is None:
        pytest.skip("zizmor is not installed")
    return subprocess.run([program, "--offline", "--quiet", folder], capture_output=True, text=True, timeout=120)


def actionlint(*files: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("actionlint", path=Path(sys.executable).parent) or shutil.which("actionlint")
    if program is None:
        pytest.skip("actionlint is not installed")
    return subprocess.run([program, *files], capture_output=True, text=True, timeout=120)


def test_zizmor_finds_nothing(folder: Path) -> None:
    done = zizmor(folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("pattern", "planted", "audit"),
    [
        (r" +with:\n +persist-credentials: false\n", "", "artipacked"),
        ("@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "@v6", "unpinned-uses"),
        (r"(?m)^ *permissions:.*\n( +contents: read\n)?", "", "excessive-permissions"),
        (r'run: make test CONSTRAINTS="\$CONSTRAINTS"', "run: echo ${{ github.head_ref }}", "template-injection"),
    ],
)
def test_zizmor_would_find(pattern: str, planted: str, audit: str, tmp_path: Path) -> None:
    path = tmp_path / ".github" / "workflows" / "ci.yml"
    path.parent.mkdir(parents=True)
    text = re.sub(pattern, planted, texts()["ci.yml"])
    assert text != texts()["ci.yml"]
    path.write_text(text, encoding="utf-8")
    done = zizmor(tmp_path)
    assert done.returncode != 0
    assert audit in done.stdout


def test_actionlint_finds_nothing(folder: Path) -> None:
    done = actionlint(*(folder / ".github" / "workflows").iterdir())
    assert done.returncode == 0, done.stdout


def test_actionlint_would_find_a_step_that_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ci.yml"
    path.write_text(texts()["ci.yml"].replace("- run: make lowest", "- name: make lowest"), encoding="utf-8")
    assert actionlint(path).returncode != 0


@pytest.mark.parametrize("name", texts())
def test_every_action_is_pinned_to_a_commit_that_is_the_same_everywhere(name: str) -> None:
    used = re.findall(r"uses: (.+)", texts()[name])
    assert used
    everywhere = {line.partition("@")[0]: line for text in texts().values() for line in re.findall(r"uses: (.+)", text)}
    for line in used:
        assert re.fullmatch(PINNED, line), line
        assert line == everywhere[line.partition("@")[0]]


@pytest.mark.parametrize("name", texts())
def test_a_job_has_the_least_rights(name: str) -> None:
    workflow = parse_yaml(texts()[name])
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        rights = job["permissions"]
        writes = {right for right, level in rights.items() if level == "write"}
        assert not writes or name in ("release.yml", "new-reward-release.yml")
        # what may write runs no code of a pull request and installs nothing
        assert not writes or not any("actions/checkout" in step.get("uses", "") for step in job["steps"])


@pytest.mark.parametrize(
    ("schema", "pattern"),
    {
        "vendor.github-workflows": ".github/workflows/*.yml",
        "vendor.dependabot": ".github/dependabot.yml",
        "vendor.github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
        "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
        "vendor.citation-file-format": "CITATION.cff",
    }.items(),
)
def test_a_file_keeps_the_schema_of_its_format(schema: str, pattern: str, folder: Path, tmp_path: Path) -> None:
    files = sorted({*ROOT.glob(pattern), *folder.glob(pattern)})  # those that `draft new-reward` writes too
    assert files
    broken = tmp_path / f"broken{files[0].suffix if files[0].suffix != '.cff' else '.yml'}"
    broken.write_text("nothing: of the kind\n", encoding="utf-8")
    check_jsonschema = pytest.importorskip("check_jsonschema")
    checked = [
        CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, *map(str, paths)])
        for paths in ([broken], files)
    ]
    assert checked[0].exit_code != 0
    assert checked[1].exit_code == 0, checked[1].output
