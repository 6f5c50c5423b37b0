"""A stranger's plugin: written by the scaffold, built as a wheel, installed where nothing of this repository is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.errors import DraftError
from draft_core.publishing.rewards import reward_project, write_reward_project
from draft_core.testing.checks import CHECKS
from tests.support import tiny

ROOT = Path(__file__).parents[2]


def test_the_template_plugin_is_what_the_scaffold_writes() -> None:
    folder, written = ROOT / "plugins" / "template", reward_project("template")
    for path, content in written.items():
        assert (folder / path).read_text(encoding="utf-8") == content, path
    made = {"__pycache__", ".pytest_cache", "build", "dist"}
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    found = [path for path in found if not any(part in made or part.endswith(".egg-info") for part in path.parts)]
    assert {path.as_posix() for path in found} == set(written)


def test_the_page_shows_the_template_line_by_line() -> None:
    page = (ROOT / "docs" / "write-a-reward.md").read_text(encoding="utf-8").partition("\n## 4.")[0]
    page = re.sub(r"\n### Columns of the list\n.*?(?=\n## )", "", page, flags=re.DOTALL)  # the template reads none
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
    passed = f"warm-light: {len(CHECKS)} of {len(CHECKS)} checks passed"
    assert passed in run(bin_ / "draft", "rewards", "check", "warm-light")

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


METHOD_PROJECT = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "draft-imitation"
version = "0.1.0"
dependencies = ["draft-core"]

[project.entry-points."draft_core.plugins"]
imitation = "draft_imitation"

[tool.hatch.build.targets.wheel]
packages = ["draft_imitation"]
""",
    "draft_imitation/__init__.py": """
from typing import Literal

from draft_core.plugin import Field, MethodConfig, MethodSpec, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2


class ImitationConfig(MethodConfig):
    kind: Literal["imitation"] = "imitation"
    sharpness: float = Field(20.0, gt=0, description="How much more a better image counts.")


class LevelConfig(RewardConfig):
    kind: Literal["level"] = "level"


@hookimpl
def draft_register_methods():
    learner = "draft_imitation.learner:Imitation"
    summary = "every image moves towards the best ones of its batch"
    words = {"summary": summary, "config": ImitationConfig, "learner": learner}
    return [MethodSpec(kind="imitation", needs_gradient=False, **words)]


@hookimpl
def draft_register_rewards():
    words = {"summary": "how bright, in whole levels", "unit": "level", "code_license": "Apache-2.0"}
    factory = "draft_imitation.learner:Level"
    return [RewardSpec(kind="level", config=LevelConfig, factory=factory, differentiable=False, **words)]
""",
    "draft_imitation/learner.py": """
import torch

from draft_core.learners.learner import Loss
from draft_core.plan import StepPlan


class Imitation:
    needs_gradient = False
    yields_divergence = False

    def __init__(self, config):
        self.sharpness = config.sharpness
        self.seen = 0

    def losses(self, batch, sampler, score):
        plan = StepPlan(sampler.steps, frozenset({sampler.steps - 1}))
        images = sampler(batch.prompts, plan=plan, generator=list(batch.generators)).images
        scores = score(images.detach(), batch.prompts).total
        self.seen += len(images)
        weights = torch.softmax(self.sharpness * scores, dim=0)
        target = torch.einsum("n,nchw->chw", weights, images.detach())
        value = (images - target).square().mean()
        yield Loss(value, step=True, images=len(images), report={"seen": self.seen})

    def modules(self):
        return {}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class Level(torch.nn.Module):
    def __init__(self, config):
        super().__init__()

    @torch.no_grad()
    def forward(self, images, prompts):
        return (images.float() * 255).round().mean(dim=(1, 2, 3)) / 255
""",
}


def test_a_strangers_learner_trains_on_a_reward_without_gradient(clean: Path, tmp_path: Path) -> None:
    """A method and a reward from a wheel, with no line of the core changed; a run that is cut short goes on exactly."""
    bin_ = clean / "venv" / "bin"
    for name, content in METHOD_PROJECT.items():
        path = clean / "method" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    wheels = clean / "method-wheels"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, clean / "method")
    run(bin_ / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *wheels.glob("*.whl"))
    where = "import draft_core, draft_imitation; print(draft_core.__file__, draft_imitation.__file__)"
    assert str(ROOT) not in run(bin_ / "python", "-c", where)
    assert "every image moves towards the best ones" in run(bin_ / "draft", "methods")

    tiny.tiny_catalog(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{pretrained: {tmp_path / 'model'}, num_inference_steps: 2}}\n"
        "prompts: [a cat, a dog]\n"
        "method: {kind: imitation, sharpness: 50.0}\n"
        "rewards: [{kind: level}]\n"
        "train: {steps: 6, batch_size: 4, learning_rate: 0.02}\n"
        "device: cpu\n"
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert "train 6/6" in run(bin_ / "draft", "train", recipe, "--set", f"output={whole}", cwd=tmp_path)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["learner"]["seen"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert all(row["grad_norm"] > 0 for row in rows)
    weights = load_file(whole / "lora" / "pytorch_lora_weights.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name)

    run(bin_ / "draft", "train", recipe, "--set", f"output={cut}", "--set", "train.steps=3", cwd=tmp_path)
    longer = ("--set", f"output={cut}", "--set", "train.steps=6", "--resume")
    run(bin_ / "draft", "train", recipe, *longer, cwd=tmp_path)
    again = load_file(cut / "lora" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())

    refused = subprocess.run(
        [str(bin_ / "draft"), "train", str(recipe), "--set", "method={kind: draft-k}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "400", "HF_HUB_OFFLINE": "1"},
    )
    assert refused.returncode == 2
    assert "reward 'level' has no gradient, which method 'draft-k' needs" in refused.stdout + refused.stderr
