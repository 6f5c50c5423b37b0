"""Every block of Python or shell in docs/ is run by a test, is a call of `draft` that parses, or says why not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.main import get_command

from draft_core import StepPlan
from draft_core.cli.app import app
from tests.support.families import sd
from tests.support.pages import ROOT, code_blocks, require_installed, run_code, text_of

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<why>[^\n]+) -->\n)?^ *```(?P<language>python|sh|bash)\n(?P<code>.*?)^ *```$", re.M | re.S
)

UNREADABLE: Any = typer.BadParameter.__base__  # click's UsageError, of whichever click typer has

# (page, language) -> how many of its blocks that are not marked which tests run, or compare with code that is run.
RUN = {
    ("docs/library.md", "python"): (12, "tests/project/test_library.py"),
    ("docs/one-step.md", "python"): (6, "tests/project/test_docs.py"),
    ("docs/tutorial.md", "python"): (1, "tests/project/test_tutorial.py"),
    ("docs/write-a-method.md", "python"): (4, "tests/project/test_tutorial.py"),
    ("docs/write-a-reward.md", "python"): (8, "tests/project/test_ecosystem.py"),
    ("docs/how-to/columns.md", "python"): (1, "tests/project/test_blocks.py"),
    ("docs/how-to/options-of-a-reward.md", "python"): (1, "tests/project/test_plugin_pages.py"),
    ("docs/how-to/publish-a-plugin.md", "sh"): (7, "tests/project/test_ecosystem.py"),
    ("docs/how-to/coming-from-other-libraries.md", "python"): (1, "tests/project/test_from_trl.py"),
    ("docs/how-to/program-as-reward.md", "python"): (1, "plugins/command/tests/test_scores.py"),
    ("docs/how-to/search-without-training.md", "python"): (1, "tests/project/test_blocks.py"),
    ("docs/how-to/train-your-model.md", "python"): (1, "tests/project/test_own_model.py"),
}


def unaccounted(page: str, text: str) -> list[str]:
    """What is wrong with the blocks of a page: those that nothing runs and that do not say why."""
    found = []
    counted = {"python": 0, "sh": 0}
    followed = (page, "sh") in RUN
    for block in BLOCK.finditer(text):
        if block["why"]:
            continue
        if block["language"] == "python" or followed:
            counted[block["language"]] += 1
        elif others := [line for line in commands(block["code"]) if line.split()[0] != "draft"]:
            found.append(f"{page}: `{others[0]}` is not run; mark the block, <!-- not run: WHY -->")
    for language, count in counted.items():
        expected = RUN.get((page, language), (0, ""))[0]
        if count != expected:
            found.append(f"{page}: {count} blocks of {language}, but tests run {expected}; run or mark the others")
    return found


def commands(code: str) -> list[str]:
    """The commands of a block of shell, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    assert unaccounted(page, text_of(page)) == []


def test_a_block_that_nothing_runs_is_found() -> None:
    assert unaccounted("docs/new.md", "```python\nprint()\n```\n") != []
    assert (
        unaccounted("docs/new.md", "1. So:\n\n    ```sh\n    draft cost a.yaml # first\n    make all\n    ```\n") != []
    )
    assert (
        unaccounted("docs/new.md", "<!-- not run: hours -->\n```sh\nmake all\n```\n```sh\ndraft cost a.yaml\n```\n")
        == []
    )
    assert unaccounted("docs/library.md", text_of("docs/library.md") + "\n```python\nprint()\n```\n") != []


@pytest.mark.parametrize(("page", "language"), RUN)
def test_the_tests_that_run_a_page_name_it(page: str, language: str) -> None:
    text = (ROOT / RUN[page, language][1]).read_text(encoding="utf-8")
    assert Path(page).name in text or page in text


@pytest.mark.parametrize("page", [page for page in PAGES if re.search(r"^ *draft ", text_of(page), flags=re.M)])
def test_the_commands_of_a_page_parse(page: str) -> None:
    """With the values of their options, each of its type."""
    for block in BLOCK.finditer(text_of(page)):
        for line in commands(block["code"]) if block["language"] != "python" and not block["why"] else ():
            if line.startswith("draft "):  # others are run by a test
                parse(shlex.split(line)[1:])


def parse(words: list[str]) -> None:
    """Raises what `draft` would if it cannot read its arguments."""
    called: Any = get_command(app)
    while words and hasattr(called, "commands"):
        called, words = called.commands[words[0]], words[1:]
    called.make_context(called.name, words)


@pytest.mark.parametrize("line", ["train a.yaml --processes two", "sample --images 1 --stepz 2", "mix", "trian a.yaml"])
def test_a_command_that_does_not_parse_is_found(line: str) -> None:
    with pytest.raises((UNREADABLE, KeyError)):
        parse(shlex.split(line))


def test_the_block_of_columns_draws_from_the_image_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = code_blocks(text_of("docs/how-to/columns.md"), "python")
    monkeypatch.chdir(tmp_path)
    drawn = []
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save("door.png")
        names: dict[str, Any] = {"pipe": sd("StableDiffusionImg2ImgPipeline"), "plan": StepPlan(16, grad_steps={15})}
        torch.manual_seed(0)
        run_code(block, names)
        drawn.append(names["images"])
    assert drawn[0].requires_grad
    assert not torch.equal(*drawn)


def test_the_block_of_search_finds_images(capsys: pytest.CaptureFixture[str]) -> None:
    require_installed("draft-emoji")
    (block,) = code_blocks(text_of("docs/how-to/search-without-training.md"), "python")
    names: dict[str, Any] = {}
    run_code(block, names)
    assert names["best"].images.shape == names["found"].images.shape == (1, 1, 3, 64, 64)
    assert names["best"].scores["emoji-clip"].max() > names["best"].scores["emoji-clip"].min()
