"""What `draft new-...` writes passes its own tests as written, whatever the plugin is; its files are sound."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from draft_core import load_catalog
from draft_core.errors import DraftError, PluginError
from draft_core.publishing.methods import method_project, write_method_project
from draft_core.publishing.models import ModelSource, write_model_project
from draft_core.publishing.projects import LICENSES, Owner, Project
from draft_core.publishing.rewards import RewardTraits, reward_project, write_reward_project
from draft_core.recipe.yaml_text import parse_yaml
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import reward_config
from draft_core.testing import CHECKS, Subject, Violation, one_thread
from draft_core.testing.models import write_small_model
from tests.support.installed import TRIED, VARIANTS, as_installed
from tests.support.pages import ROOT, require_installed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TWO_STEPS = ROOT / "plugins" / "emoji" / "src" / "draft_emoji" / "two-steps"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Subject]:
    """Writes the project of a variant, and builds its reward as a recipe would find it."""

    def build(kind: str) -> Subject:
        write_reward_project(kind, tmp_path / kind, VARIANTS[kind])
        monkeypatch.syspath_prepend(as_installed(tmp_path / kind))
        catalog = load_catalog()
        entry = catalog.reward(kind)
        return Subject(entry.spec, reward_config(kind, entry.spec.small, catalog))  # no module: no further process

    return build


@pytest.mark.parametrize("kind", ["image-prompt", "image-columns-weights-port", "video-pixels"])
def test_a_reward_keeps_the_contract_as_written(kind: str, installed: Callable[[str], Subject]) -> None:
    subject = installed(kind)
    for check in CHECKS.values():
        with one_thread():
            check(subject)
    if VARIANTS[kind].port:
        from draft_core.testing import compare_with_reference

        assert compare_with_reference(subject, sizes=[(48, 72)]).holds


def test_the_checks_would_fail_on_a_reward_that_does_not_read_what_it_says(
    installed: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = installed("image-prompt")
    module = sys.modules["draft_reward_image_prompt.reward"]
    monkeypatch.setattr(module, "colour_of", lambda prompt: (1.0, -0.5, -0.5))
    with pytest.raises(Violation, match="other prompts give the same scores"):
        CHECKS["prompts_count_as_declared"](subject)


def test_every_project_passes_its_own_tests(tmp_path: Path) -> None:
    """Rewards of every trait, both kinds of methods, and a model from a folder and from a LoRA, in one process."""
    require_installed("draft-emoji")
    for kind, traits in TRIED.items():
        write_reward_project(kind, tmp_path / kind, traits)
    write_method_project("every-other", tmp_path / "plan")
    write_method_project("best-half", tmp_path / "learner", learner=True)
    small = write_small_model(tmp_path.with_name("small"))
    write_model_project("small-one", tmp_path / "model", ModelSource(base=str(small)), load_catalog())
    write_model_project("two-more", tmp_path / "lora", ModelSource(base="emoji", lora=TWO_STEPS), load_catalog())
    sources = [as_installed(project) for project in sorted(tmp_path.iterdir())]
    settings = tomllib.loads((tmp_path / "plan" / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    warnings = [word for line in settings["ini_options"]["filterwarnings"] for word in ("-W", line)]
    options = ("-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-k", "not naming_imports_no_torch")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, *warnings, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sources])), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_every_project_is_formatted_and_passes_the_linter(tmp_path: Path) -> None:
    program = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if program is None:
        pytest.skip("ruff is not installed")
    for kind, traits in VARIANTS.items():
        write_reward_project(kind, tmp_path / kind, traits)
    write_method_project("every-other", tmp_path / "plan")
    write_method_project("best-half", tmp_path / "learner", learner=True)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model_index.json").write_text("{}", encoding="utf-8")
    source = ModelSource(base=str(tmp_path / "index"))
    write_model_project("small-one", tmp_path / "model", source, Catalog())
    for words in (["check", "--select", "E,F,W,UP,B,RUF"], ["format", "--check"]):
        command = [program, *words, "--isolated", "--line-length", "120", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("license", LICENSES)
def test_the_licence_is_the_same_everywhere(license: str) -> None:
    files = reward_project("warm", owner=Owner(license=license, author='Ann "A" Bee'))  # type: ignore[arg-type]
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["authors"] == [{"name": 'Ann "A" Bee'}]
    naming = files["src/draft_reward_warm/__init__.py"]
    if license == "none":
        assert "LICENSE" not in files
        assert "license" not in project
        assert project["classifiers"] == ["Private :: Do Not Upload"]
        assert 'code_license="none yet"' in naming
        return
    assert project["license"] == license
    assert f'code_license="{license}"' in naming
    assert f"code {license}" in files["README.md"]
    if license == "MIT":
        assert 'Ann "A" Bee' in files["LICENSE"]
    else:
        assert files["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_plugins_of_this_repository_carry_their_licence() -> None:
    ours = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for project in (ROOT / "plugins").glob("*/pyproject.toml"):
        assert (project.parent / "LICENSE").read_text(encoding="utf-8") == ours, project


def test_the_workflows_test_three_pythons_and_publish_without_a_password() -> None:
    files = method_project("every-other")
    test, release = (parse_yaml(files[f".github/workflows/{name}.yml"]) for name in ("test", "release"))
    runs = test["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert len({run["python"] for run in runs}) == 3
    assert {run["resolution"] for run in runs} == {"lowest-direct", "highest"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert release["jobs"]["publish"]["environment"] == "release"
    assert "secrets." not in files[".github/workflows/release.yml"]


# Refusals


@pytest.mark.parametrize("name", ["Warm", "warm_light", "1st", "", "warm--light"])
def test_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(DraftError, match="cannot name a reward; use lower-case words joined by hyphens"):
        reward_project(name)
    with pytest.raises(DraftError, match="cannot name a model"):
        Project(what="model", name=name, description="", files={})


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DraftError, match="it exists and is not an empty folder"):
        write_reward_project("warm", tmp_path)


def test_a_port_of_a_scorer_of_videos_is_refused() -> None:
    with pytest.raises(DraftError, match="--port: a reference scores single images"):
        RewardTraits(takes="video", port=True)


@pytest.mark.parametrize(
    ("base", "files", "sentence"),
    [
        ("nothing", [], "unknown model '.*nothing'"),
        ("empty", ["readme.txt"], "it holds no model_index.json; give a folder in diffusers' format"),
        ("pickled", ["model_index.json", "unet/weights.bin"], r"unet.weights\.bin may hold code; save the pipeline"),
    ],
)
def test_what_is_no_model_is_refused(base: str, files: list[str], sentence: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / base / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / base / name).touch()
    with pytest.raises((DraftError, PluginError), match=sentence):
        write_model_project("mine", tmp_path / "new", ModelSource(base=str(tmp_path / base)), Catalog())
    assert not (tmp_path / "new").exists()


def test_a_repository_on_the_hub_is_named_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource(base="owner/name", revision="abc123", license="MIT")
    write_model_project("far-one", tmp_path / "new", source, Catalog())
    monkeypatch.syspath_prepend(as_installed(tmp_path / "new"))
    spec = load_catalog().pretrained["far-one"].spec
    assert (spec.location, spec.revision, spec.folder) == ("owner/name", "abc123", None)
    assert not (tmp_path / "new" / "src" / "draft_model_far_one" / "model").exists()
    with pytest.raises(DraftError, match="--revision: emoji is no repository on the hub"):
        write_model_project("far", tmp_path / "far", ModelSource(base="emoji", revision="abc"), load_catalog())


def test_an_alias_by_itself_needs_no_second_one() -> None:
    require_installed("draft-emoji")
    catalog = load_catalog()
    with pytest.raises(DraftError, match="'emoji' is an alias already; give the folder of another model, or a LoRA"):
        write_model_project("mine", Path("new"), ModelSource(base="emoji"), catalog)
    with pytest.raises(DraftError, match="--base emoji-two-steps: it is a LoRA itself"):
        write_model_project("mine", Path("new"), ModelSource(base="emoji-two-steps", lora=TWO_STEPS), catalog)
