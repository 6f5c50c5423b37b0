"""A stranger's plugin: written by the scaffold, built as a wheel, installed where nothing of this repository is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draft_core.publishing.rewards import reward_project
from draft_core.testing.checks import CHECKS
from tests.support import tiny
from tests.support.pages import ROOT, code_blocks, text_of
from tests.support.thorough import in_full


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
    page = re.sub(r"\n### Columns of the list\n.*?(?=\n## )", "", page, flags=re.DOTALL)  # nor groups: it reads none
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


# Settings with which a command of the page runs in seconds.
FEWER = {
    "draft train": "--set train.steps=2 --set model.num_inference_steps=2 --set model.lora.rank=2 --set device=cpu",
    "draft sample": "--steps 2",
}


BUILD = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir")


@dataclass(frozen=True)
class Stranger:
    """Somebody with an environment of their own, and an index that has the wheels of this repository alone.

    Arguments:
        base: where the wheels lie, and links to third-party packages.
        folder: of the environment.
    """

    base: Path
    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def run(self, *words: Any, cwd: Path | None = None) -> str:
        """What a command printed; it runs where nothing of this repository lies, which `python -c` would import."""
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=cwd or self.bin,
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "HOME": "/nonexistent",
                "COLUMNS": "200",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.base / "wheels"),
                "PIP_NO_BUILD_ISOLATION": "0",  # the variable says what the option's default is: 0 is no isolation
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        return done.stdout


def new_environment(base: Path, folder: Path) -> Stranger:
    """A virtual environment with third-party packages only, by links to those of this one."""
    venv.create(folder, with_pip=True)
    site = Path(run(folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for path in site.glob("setuptools*"):  # older than torch asks for
        shutil.rmtree(path)
    (site / "third.pth").write_text(str(base / "third"), encoding="utf-8")
    for program in ("pytest", "twine"):
        path = folder / "bin" / program
        module = "twine" if program == "twine" else "pytest"
        path.write_text(f'#!/bin/sh\nexec {folder}/bin/python -m {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return Stranger(base, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the core, and links to what others publish."""
    base = tmp_path_factory.mktemp("stranger")
    run(*BUILD, base / "wheels", ROOT)
    (base / "third").mkdir()
    for path in dict.fromkeys(map(Path, sys.path)):
        for item in path.iterdir() if path.name == "site-packages" else ():
            link = base / "third" / item.name
            if not item.name.startswith(("draft", "__editable__", "_draft", "pip")) and not link.exists():
                link.symlink_to(item)
    return base


@pytest.fixture(scope="module")
def clean(base: Path) -> Stranger:
    """An environment with the core's wheel."""
    stranger = new_environment(base, base / "venv")
    stranger.run(stranger.bin / "python", "-m", "pip", "install", "--quiet", "draft-core")
    return stranger


def run(*words: Any) -> str:
    """What a command of this environment printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@in_full
def test_the_page_on_publishing_works_command_by_command(base: Path, tmp_path: Path) -> None:
    """A reward with weights and a reference image, a method and a model: written, trained on, tried as wheels."""
    run(*BUILD, base / "wheels", ROOT / "plugins" / "emoji")
    page = text_of("docs/how-to/publish-a-plugin.md")
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = [line for block in code_blocks(page, "sh") for line in block.splitlines()]
    assert [line.split()[:2] for line in commands if line.startswith("draft new")] == [
        ["draft", f"new-{what}"] for what in ("reward", "method", "model")
    ]
    stranger, printed = None, {}
    unfinished = "draft rewards check like-this --release"  # the weights of the example are nowhere
    for line in commands:
        if made := re.fullmatch(r"python -m venv (\S+)", line):
            environment = new_environment(base, tmp_path / made[1])
            stranger = stranger or environment
            continue
        if line.startswith(". "):
            continue
        assert stranger is not None
        more = next((words for begin, words in FEWER.items() if line.removeprefix("clean/bin/").startswith(begin)), "")
        ends = "; test $? = 1" if line == unfinished else ""
        printed[line] = stranger.run("/bin/bash", "-c", f"{line} {more}{ends}", cwd=tmp_path)
    passed = f"like-this: {len(CHECKS)} of {len(CHECKS)} checks passed"
    assert passed in stranger.run(tmp_path / "clean" / "bin" / "draft", "rewards", "check", "like-this", "--small")
    assert "like-this: 1 to mend before it is published" in printed[unfinished]
    assert (tmp_path / "runs" / "clean" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "tuned.png").is_file()
    where = "import draft_core, draft_reward_like_this as plugin; print(draft_core.__file__, plugin.__file__)"
    python = tmp_path / "clean" / "bin" / "python"
    assert str(ROOT) not in stranger.run(python, "-c", f"{where}; import sys; print(sys.path)")

    # what `draft new-reward` cites came with the wheel
    (cited,) = re.findall(r"^more: (.+)$", next(text for line, text in printed.items() if "new-reward" in line), re.M)
    assert Path(cited).is_relative_to(tmp_path / ".venv")
    assert Path(cited).read_text(encoding="utf-8") == text_of("docs/write-a-reward.md")

    stranger.run(python, "-m", "pip", "uninstall", "--yes", "--quiet", "draft-reward-like-this")
    assert "like-this" not in stranger.run(tmp_path / "clean" / "bin" / "draft", "rewards")


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


# Commands in one process, which imports what they need once.
ONE_AFTER_ANOTHER = """
import json, sys
from draft_core.cli.app import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
"""


def test_a_strangers_learner_trains_on_a_reward_without_gradient(clean: Stranger, tmp_path: Path) -> None:
    """A method and a reward from a wheel, with no line of the core changed; a run that is cut short goes on exactly."""
    bin_, run = clean.bin, clean.run
    for name, content in METHOD_PROJECT.items():
        path = clean.base / "method" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    wheels = clean.base / "method-wheels"
    run(*BUILD, wheels, clean.base / "method")
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
    shorter = ["train", recipe, "--set", f"output={cut}", "--set", "train.steps=3"]
    longer = ["train", recipe, "--set", f"output={cut}", "--set", "train.steps=6", "--resume"]
    commands = [["train", recipe, "--set", f"output={whole}"], shorter, longer]
    words = json.dumps([[*map(str, command)] for command in commands])
    assert "train 6/6" in run(bin_ / "python", "-c", ONE_AFTER_ANOTHER, words, cwd=tmp_path)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["learner"]["seen"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert all(row["grad_norm"] > 0 for row in rows)
    weights = load_file(whole / "lora" / "pytorch_lora_weights.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name or "lora.up" in name)

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
