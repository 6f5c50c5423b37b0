"""`draft rewards check --release` finds each thing that is missing, and nothing in the plugins of this repository."""

from __future__ import annotations

import os
from email import message_from_string
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import pytest
from typer.testing import CliRunner

from draft_core import load_catalog
from draft_core.cli.app import app
from draft_core.plugin import Config, Field, RewardConfig, RewardSpec
from draft_core.publishing.release import missing_for_release
from draft_core.registry.catalog import Catalog, Distribution, Entry
from tests.support.pages import ROOT
from tools import release

GOOD = """Metadata-Version: 2.4
Name: draft-reward-warm
Version: 0.1.0
Summary: warm
License-Expression: MIT
License-File: LICENSE
Requires-Python: >=3.10
Project-URL: Homepage, https://example.org
Requires-Dist: draft-core>=0.1.0

# warm

`warm` scores warmth: [more](https://example.org/more).

```md
[a block may show](any/link.md)
```
"""


class WarmConfig(RewardConfig):
    """A config with nothing to mend."""

    kind: Literal["warm"] = "warm"
    strength: float = Field(1.0, description="Factor.")


class Inner(Config):
    """A nested config with a field that is not described."""

    side: int = 3


class BareConfig(RewardConfig):
    """A config that is not described."""

    kind: Literal["warm"] = "warm"
    strength: float = 1.0
    inner: Inner = Field(Inner(), description="Nested.")


class HubConfig(WarmConfig):
    """A config that offers published weights."""

    weights: str = Field("hub", description="Where the weights are.")


def missing(text: str = GOOD, **changed: Any) -> list[str]:
    """What is found to be required of a spec with these fields, in a package with this metadata."""
    good: dict[str, Any] = {
        "kind": "warm",
        "summary": "how warm an image is",
        "config": WarmConfig,
        "factory": "tests.support.tiny:Redness",
        "unit": "level",
        "score_range": "[-1, 1]",
        "code_license": "MIT",
    }
    entry = Entry(RewardSpec(**{**good, **changed}), Distribution("draft-reward-warm", "0.1.0"))
    return [finding.what for finding in missing_for_release(entry, message_from_string(text)) if finding.required]


def test_nothing_is_missing_where_everything_is_there() -> None:
    assert missing() == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"code_license": "none yet"}, "the spec names no licence of the code"),
        ({"config": HubConfig, "download_mb": 3.0}, "the spec names no licence of the weights"),
        ({"config": HubConfig, "weights_license": "MIT"}, "the spec does not say how much is downloaded"),
        ({"weights_license": "unknown"}, "the licence of the weights is not known"),
        (
            {"factory": "tests.support.nowhere:Redness"},
            "the module of its factory, tests.support.nowhere, is not there",
        ),
        ({"config": BareConfig}, "the field 'strength' has no description"),
        ({"config": BareConfig}, "the field 'Inner.side' has no description"),
        ({"summary": "two\nlines"}, "the summary is not one line"),
    ],
)
def test_what_a_spec_lacks_is_found(changed: dict[str, Any], found: str) -> None:
    assert found in missing(**changed)


@pytest.mark.parametrize(
    ("line", "instead", "found"),
    [
        ("License-Expression: MIT\n", "", "the package names no licence"),
        ("License-File: LICENSE\n", "", "the package has no file LICENSE"),
        ("License-File", "Classifier: Private :: Do Not Upload\nLicense-File", "the package is marked as private"),
        ("Version: 0.1.0", "Version: 0.1.0+here", "an index takes no local version 0.1.0+here"),
        ("Version: 0.1.0", "Version: first", "the version 'first' is none"),
        ("Summary: warm\n", "", "the package has no description"),
        ("draft-core>=0.1.0", "draft-core", "it requires no lowest version of draft-core"),
        (GOOD.partition("\n\n")[2], "", "the package has no README"),
        ("`warm` scores", "It scores", "the README does not name 'warm'"),
        (
            "https://example.org/more",
            "docs/more.md",
            "the README links to docs/more.md, which its package's page cannot follow",
        ),
    ],
)
def test_what_a_package_lacks_is_found(line: str, instead: str, found: str) -> None:
    text = GOOD.replace("# warm\n", "# it\n") if "README does not" in found else GOOD
    assert line in text
    assert found in missing(text.replace(line, instead))


def test_a_kind_that_others_publish_is_refused() -> None:
    class JpegConfig(RewardConfig):
        """Named like a published one."""

        kind: Literal["jpeg"] = "jpeg"

    assert "the kind 'jpeg' is that of draft-reward-jpeg" in missing(kind="jpeg", config=JpegConfig)


def built_metadata(folder: Path) -> Message:
    """What the package's metadata will say, as hatchling computes it for the wheel."""
    metadata = pytest.importorskip("hatchling.metadata.core", reason="hatchling is not installed")
    spec = pytest.importorskip("hatchling.metadata.spec")
    manager = pytest.importorskip("hatchling.plugin.manager")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="hatch-fancy-pypi-readme is not installed")
    before = Path.cwd()
    os.chdir(folder)  # as whoever builds it does; the hook reads the README from there
    try:
        project = metadata.ProjectMetadata(str(folder), manager.PluginManager())
        return message_from_string(spec.construct_metadata_file_2_4(project))
    finally:
        os.chdir(before)


@cache
def installed() -> Catalog:
    """What is installed, read once."""
    return load_catalog()


FOLDERS = [folder for folder in release.projects(ROOT) if folder != ROOT]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_plugin_of_this_repository_can_be_published(folder: Path) -> None:
    built = built_metadata(folder)
    assert "LICENSE" in (built.get_all("License-File") or [])
    entries = [entry for entry in installed().rewards.values() if entry.distribution.name == built["Name"]]
    if not entries:
        pytest.skip(f"{built['Name']} is not installed")
    for entry in entries:
        assert [finding for finding in missing_for_release(entry, built) if finding.required] == [], entry.spec.kind


# The commands


def test_the_command_says_what_is_missing_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from draft_core.publishing.findings import Finding

    if "jpeg" not in installed().rewards:
        pytest.skip("draft-reward-jpeg is not installed")
    found = [Finding("it has no bell", "buy one")]
    monkeypatch.setattr("draft_core.publishing.release.missing_for_release", lambda entry: found)
    result = CliRunner().invoke(app, ["rewards", "check", "jpeg", "--release"])
    assert result.exit_code == 1
    assert "missing it has no bell; buy one\njpeg: 1 to mend before it is published" in result.output
    found[:] = [Finding("it has no whistle", "buy one", required=False)]
    result = CliRunner().invoke(app, ["rewards", "check", "jpeg", "--release"])
    assert result.exit_code == 0
    assert "advised it has no whistle; buy one\njpeg: ready to be published" in result.output


def test_a_setting_is_refused_where_nothing_is_built() -> None:
    result = CliRunner().invoke(app, ["rewards", "check", "jpeg", "--release", "--small"])
    assert result.exit_code == 2
    assert "leave out --set, --small and --prompt" in " ".join(result.output.split())


# Files that the code names


def code_with(constants: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is found of a reward whose module has these constants; the hub has the repository a/b, with the file f."""
    name = f"named_{crc32(constants.encode())}"
    head = "from pathlib import Path\nfrom draft_core.rewards.weights import HubFile\n"
    (tmp_path / f"{name}.py").write_text(f"{head}{constants}\nMade = None\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("draft_core.rewards.hub.unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda repo, file: (repo, file) == ("a/b", "f"))
    monkeypatch.setattr("huggingface_hub.repo_exists", lambda repo: repo == "a/b")
    return missing(factory=f"{name}:Made", config=HubConfig, weights_license="MIT", download_mb=1.0)


@pytest.mark.parametrize(
    ("constants", "found"),
    [
        ('PUBLISHED = HubFile("a/b", "f")\nMODEL = "a/b"\nHERE = Path(__file__)', None),
        ('FILES = {"2.0": HubFile("a/b", "g")}', "the hub has no g of a/b, which NAME.FILES['2.0'] names"),
        ('MODEL = "a/c"', "the hub has no a/c, which NAME.MODEL names"),
        (
            'PUBLISHED = HubFile("owner/warm", "f")',
            "NAME.PUBLISHED names f of owner/warm, the example of a new project",
        ),
        ('IMAGE = Path(__file__).with_name("x.png")', "NAME.IMAGE names HERE/x.png, which is not there"),
        ("import nowhere", "NAME does not import (ModuleNotFoundError: No module named 'nowhere' (HERE/NAME.py:3))"),
    ],
)
def test_files_that_the_code_names_must_be_there(
    constants: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"named_{crc32(constants.encode())}"
    said = [] if found is None else [found.replace("NAME", name).replace("HERE", str(tmp_path))]
    assert code_with(constants, tmp_path, monkeypatch) == said


def test_a_hub_that_cannot_be_asked_is_said_and_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = installed().rewards.get("imagereward")
    if entry is None:
        pytest.skip("draft-reward-imagereward is not installed")
    said = [finding for finding in missing_for_release(entry) if "could not be asked" in finding.what]
    assert said
    assert not any(finding.required for finding in said)
    assert "HF_HUB_OFFLINE is set" in said[0].what
