"""What a newcomer reads and a package page shows is up to date: citation, hooks, long descriptions, the directory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import draft_core
from draft_core import load_catalog
from draft_core.publishing.rewards import reward_project
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.specs import RewardSpec
from tests.support.pages import ROOT, require_installed, text_of
from tools import plugin_directory, release

PROJECTS = release.projects(ROOT)


def test_the_citation_is_of_this_version() -> None:
    assert parse_yaml(text_of("CITATION.cff"))["version"] == draft_core.__version__


def test_the_hooks_take_the_tested_ruff() -> None:
    (pinned,) = re.findall(r"^ruff==.+$", text_of("constraints.txt"), flags=re.MULTILINE)
    hooks = parse_yaml(text_of(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert {tuple(hook["additional_dependencies"]) for hook in hooks if "additional_dependencies" in hook} == {
        (pinned,)
    }


# Package pages


def long_description(folder: Path) -> str:
    """What the package's page shows, as hatchling computes it for the wheel."""
    metadata = pytest.importorskip("hatchling.metadata.core", reason="hatchling is not installed")
    manager = pytest.importorskip("hatchling.plugin.manager")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="hatch-fancy-pypi-readme is not installed")
    before = Path.cwd()
    os.chdir(folder)  # as whoever builds it does; the hook reads the README from there
    try:
        return str(metadata.ProjectMetadata(str(folder), manager.PluginManager()).core.readme)
    finally:
        os.chdir(before)


def relative_targets(text: str) -> list[str]:
    """The links and images of a page that lead into its repository."""
    text = re.sub(r"(?ms)^(`{3,}).*?^\1", "", text)
    targets = [*re.findall(r"\]\(\s*([^)\s]+)", text), *re.findall(r"(?:src|href)=[\"']([^\"']+)", text)]
    targets += re.findall(r"(?m)^\[[^\]]+\]:\s*(\S+)", text)
    return [target for target in targets if not target.startswith(("https://", "#"))]


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_a_package_page_has_no_link_into_the_repository(folder: Path) -> None:
    readme, shown = (folder / "README.md").read_text(encoding="utf-8"), long_description(folder)
    assert relative_targets(shown) == []
    assert len(shown) > len(readme) / 2
    assert re.findall(r"(?m)^#+ .+$", shown) == re.findall(r"(?m)^#+ .+$", readme)
    for address in re.findall(r"\]\((https://[^)]+)\)", readme):
        assert address in shown


def test_links_into_the_repository_are_found_and_become_text() -> None:
    assert relative_targets("[a](b.md) ![c](d.png) <img src='e'>\n[f]: g\n[h](https://i) [j](#k)") == [
        *("b.md", "d.png", "e", "g")
    ]
    assert relative_targets(text_of("README.md")), "else the test above tests nothing"
    shown = long_description(ROOT)
    assert "![" not in shown
    assert "`draft-reward-jpeg`" in shown


# Release


def test_the_versions_of_all_distributions_are_one() -> None:
    found = release.versions(ROOT)
    assert len(found) == len(PROJECTS)
    release.require_version(found, f"v{draft_core.__version__}")


@pytest.mark.parametrize(
    ("found", "tag", "sentence"),
    [
        ({"draft-core": "1.0", "draft-a": "0.9"}, "", "draft-core is 1.0, but draft-a 0.9; give all the same version"),
        ({"draft-core": "1.0"}, "1.0", "the tag 1.0 is not v1.0"),
    ],
)
def test_versions_that_differ_are_not_released(found: dict[str, str], tag: str, sentence: str) -> None:
    with pytest.raises(release.ReleaseError, match=re.escape(sentence)):
        release.require_version(found, tag)


def test_what_is_not_committed_is_not_released(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True, timeout=60)
    release.require_committed(tmp_path)
    (tmp_path / "new.py").write_text("", encoding="utf-8")
    with pytest.raises(release.ReleaseError, match=r"new.py is not committed \(1 files in all\)"):
        release.require_committed(tmp_path)


def test_the_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("a.whl", "b.tar.gz"):
        (tmp_path / name).write_bytes(name.encode())
    release.write_sums([tmp_path / "b.tar.gz", tmp_path / "a.whl"], tmp_path / "SHA256SUMS")
    if shutil.which("sha256sum") is None:
        expected = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in ("a.whl", "b.tar.gz")]
        assert (tmp_path / "SHA256SUMS").read_text(encoding="utf-8").splitlines() == expected
        return
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0
    (tmp_path / "a.whl").write_bytes(b"other")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, timeout=60).returncode == 1


# The directory of rewards


def test_the_directory_is_what_its_program_writes() -> None:
    require_installed(*(name for name in release.versions(ROOT) if name not in ("draft-core", "draft-reward-template")))
    assert text_of("docs/plugins.md") == plugin_directory.page(load_catalog())


def test_a_port_is_listed_with_the_versions_that_it_was_compared_with() -> None:
    readme = text_of("plugins/hpsv2/README.md")
    told = plugin_directory.measured_with(readme, "hpsv2")
    assert re.fullmatch(r"torch [\d.]+, torchvision [\d.]+, open-clip-torch [\d.]+", told)
    assert plugin_directory.measured_with(readme, "hpsv3") == ""


def test_the_example_is_what_new_reward_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [reward for reward in plugin_directory.read_others() if reward.example]
    module = types.ModuleType("draft_reward_warm_light")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(reward_project(example.kind)["src/draft_reward_warm_light/__init__.py"], vars(module))
    (spec,) = module.draft_register_rewards()
    assert isinstance(spec, RewardSpec)
    for name in ("kind", "summary", "differentiable", "needs_prompt", "code_license", "weights_license", "download_mb"):
        assert getattr(example, name) == getattr(spec, name), name
    assert example.tolerance == spec.tolerance


def test_a_printed_entry_reads_back() -> None:
    require_installed("draft-reward-hpsv2")
    reward = plugin_directory.listed(load_catalog().reward("hpsv2"))
    (entry,) = plugin_directory.tomllib.loads(plugin_directory.toml_entry(reward))["reward"]
    assert plugin_directory.Listed(**entry) == reward
    assert "\n".join(plugin_directory.row(reward)) == "\n".join(plugin_directory.row(plugin_directory.Listed(**entry)))
