"""A stranger's plugin: written by the scaffold, built as a wheel, installed where nothing of this repository is."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from draft_core.cli.scaffold import reward_project, write_reward_project
from draft_core.errors import DraftError
from tests.support import tiny

ROOT = Path(__file__).parents[2]


def test_the_template_plugin_is_what_the_scaffold_writes() -> None:
    for path, content in reward_project("template").items():
        assert (ROOT / "plugins" / "template" / path).read_text(encoding="utf-8") == content, path


def test_the_page_shows_the_template_line_by_line() -> None:
    page = (ROOT / "docs" / "write-a-reward.md").read_text(encoding="utf-8").partition("\n## 4.")[0]
    files = "\n".join(reward_project("template").values())
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        assert block in files


def test_the_page_shows_the_original_of_a_port_line_by_line() -> None:
    page = (ROOT / "docs" / "write-a-reward.md").read_text(encoding="utf-8").partition("\n## 4.")[2]
    files = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "plugins" / "emoji").rglob("*.py"))
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert block in files


@pytest.mark.parametrize("kind", ["Warm", "warm_light", "1st", "", "warm--light"])
def test_an_impossible_name_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="cannot name a reward; use lower-case words joined by hyphens"):
        write_reward_project(kind, tmp_path / "new")


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DraftError, match="it exists and is not an empty folder"):
        write_reward_project("warm", tmp_path)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheels of the core and of a scaffolded plugin, and third-party packages only."""
    base = tmp_path_factory.mktemp("stranger")
    write_reward_project("warm-light", base / "project")
    for project in (ROOT, base / "project"):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", base / "wheels", project)
    venv.create(base / "venv", with_pip=True)
    python = base / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Third-party packages come from this environment by links, what this repository installed does not.
    (base / "third").mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if not item.name.startswith(("draft", "__editable__", "_draft", "pip", "setuptools")):
            (base / "third" / item.name).symlink_to(item)
    (site / "third.pth").write_text(str(base / "third"))
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *sorted((base / "wheels").glob("*.whl")))
    return base


def run(*words: Any, cwd: Path | None = None) -> str:
    """What a command printed; it runs where nothing of this repository lies, which `python -c` would import."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd or Path(words[0]).parent,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_plugin_from_a_wheel_is_found_checked_trained_on_and_uninstalled(clean: Path, tmp_path: Path) -> None:
    bin_ = clean / "venv" / "bin"
    where = "import draft_core, draft_reward_warm_light as plugin; print(draft_core.__file__, plugin.__file__)"
    origin = run(bin_ / "python", "-c", where)
    assert str(ROOT) not in origin
    assert str(ROOT) not in run(bin_ / "python", "-c", "import sys; print(sys.path)")

    assert "draft-reward-warm-light 0.1.0" in run(bin_ / "draft", "rewards")
    assert "warm-light: 14 of 14 checks passed" in run(bin_ / "draft", "rewards", "check", "warm-light")

    tiny.tiny_catalog(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{pretrained: {tmp_path / 'model'}, num_inference_steps: 2}}\n"
        "prompts: [a cat, a dog]\n"
        "rewards: [{kind: warm-light, strength: 2.0}]\n"
        "train: {steps: 2, batch_size: 2}\n"
        "device: cpu\n"
        f"output: {tmp_path / 'run'}\n"
    )
    assert "train 2/2" in run(bin_ / "draft", "train", recipe, cwd=tmp_path)
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()

    run(bin_ / "python", "-m", "pip", "uninstall", "--yes", "--quiet", "draft-reward-warm-light")
    assert "No reward is installed" in run(bin_ / "draft", "rewards")
