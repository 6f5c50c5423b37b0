"""The documentation is run: the page of one step equals the library, and links and commands exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_command

from draft_core import load_recipe
from draft_core.adapters.lora import add_lora, trainable
from draft_core.cli.app import app
from tests.support.pages import ROOT, code_blocks, require_installed, text_of
from tests.support.tiny import PROMPTS, Redness, RednessConfig, byte_tokenizer, tiny_pipe

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("plugins/*/README.md"),
    ]
)


def test_one_step_is_the_librarys_step_in_every_bit(tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    add_lora(pipe, rank=2)
    with torch.no_grad():
        for parameter in trainable(pipe):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    names: dict[str, Any] = {"pipe": pipe, "prompts": PROMPTS, "reward": Redness(RednessConfig())}
    exec("\n".join(code_blocks(text_of("docs/one-step.md"), "python")), names)
    parameters = list(trainable(pipe))
    page = [parameter.grad for parameter in parameters]
    library = torch.autograd.grad(names["library_loss"], parameters)
    assert torch.equal(names["images"], names["rollout"].images)
    assert any(grad is not None and grad.abs().max() > 0 for grad in page)
    for one, other in zip(page, library, strict=True):
        assert one is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    known: Any = get_command(app)
    for block in code_blocks(page.read_text(encoding="utf-8"), "(?:sh|bash)"):
        for words in re.findall(r"^draft ([a-z-]+)(.*)$", block, flags=re.MULTILINE):
            command, rest = words[0], words[1].partition("#")[0]
            assert command in known.commands, f"{page.name} calls draft {command}"
            called = known.commands[command]
            if rest.split() and hasattr(called, "commands"):
                command = f"{command} {rest.split()[0]}"
                assert rest.split()[0] in called.commands, f"{page.name} calls draft {command}"
                called = called.commands[rest.split()[0]]
            options = {option for parameter in called.params for option in parameter.opts}
            for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
                assert option in options, f"{page.name} calls draft {command} with {option}"


@pytest.mark.parametrize(
    "path", [*ROOT.glob("recipes/*.yaml"), ROOT / "draft_core" / "cli" / "demo.yaml"], ids=lambda p: p.name
)
def test_recipes_are_valid_with_the_plugins_of_this_repository(path: Path, tmp_path: Path) -> None:
    require_installed("draft-emoji", "draft-reward-adversarial", "draft-reward-colour", "draft-reward-jpeg")
    copied = tmp_path / "recipes" / path.name
    shutil.copytree(ROOT / "recipes", copied.parent)
    shutil.copy(path, copied)
    for weights in re.findall(r"\.\./(models/[\w./-]+)", path.read_text(encoding="utf-8")):
        (tmp_path / weights).parent.mkdir(exist_ok=True)
        (tmp_path / weights).touch()
    for pairs in re.findall(r"pairs: \.\./(runs/[\w./-]+)", path.read_text(encoding="utf-8")):
        file = tmp_path / pairs
        file.parent.mkdir(parents=True)
        for name in ("one", "other"):
            Image.new("RGB", (8, 8)).save(file.parent / f"{name}.png")
        file.write_text('{"prompt": "a pear", "winner": "one.png", "loser": "other.png", "user": "one"}\n')
    for users in re.findall(r"file: \.\./(runs/[\w./-]+)", path.read_text(encoding="utf-8")):
        (tmp_path / users).touch()
    recipe = load_recipe(copied)
    assert recipe.evaluation is not None
    assert recipe.output.parent in (tmp_path / "runs", copied.parent / "runs")
