"""Rewards that remember are caught, and rewards in a file of one's own and with prompts of one's own are checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from draft_core.cli import app as cli
from draft_core.cli import rewards as cli_rewards
from draft_core.errors import DraftError
from draft_core.registry.catalog import Catalog
from draft_core.rewards import FrozenModule, checked_images
from draft_core.testing import CHECKS, RewardContract, Subject, Violation
from draft_core.testing.own_file import subject_of_file
from tests.support import tiny
from tests.support.tiny import REDNESS, Redness, RednessConfig


class Remembers(FrozenModule):
    """A baseline that moves where autograd records: what is scored without a gradient never shows it."""

    def __init__(self, *, in_buffer: bool, counts: bool = True) -> None:
        super().__init__()
        self.in_buffer, self.counts = in_buffer, counts
        self.register_buffer("mean", torch.zeros(()))
        self.total = 0.0

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = checked_images(images, prompts, where="planted").square().mean((1, 2, 3))
        if torch.is_grad_enabled():
            self.total += float(scores.detach().mean()) * (not self.in_buffer)
            self.mean += scores.detach().mean() * self.in_buffer
        return scores - (self.total + self.mean) * self.counts


class OncePerPrompt(FrozenModule):
    """The mean of the images of a prompt is taken off: images of one prompt leak into one another."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = checked_images(images, prompts, where="planted").square().mean((1, 2, 3))
        alike = torch.tensor([[float(one == other) for other in prompts] for one in prompts])
        return scores - (alike @ scores) / alike.sum(1) * (alike.sum(1) > 1)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (Remembers(in_buffer=False), "and after further calls .*: it remembers"),
        (Remembers(in_buffer=True), "and after further calls .*: it remembers"),
        (Remembers(in_buffer=True, counts=False), "calls change what it holds, first mean: it remembers"),
    ],
)
def test_what_a_reward_remembers_is_caught(reward: Any, said: str) -> None:
    subject = Subject(REDNESS, RednessConfig(), reward=reward)
    CHECKS["deterministic"](subject)  # which scores without a gradient
    with pytest.raises(Violation, match=said):
        CHECKS["remembers_nothing"](subject)
    CHECKS["remembers_nothing"](Subject(REDNESS, RednessConfig(), reward=Redness(RednessConfig())))


def test_images_of_one_prompt_that_are_compared_are_caught() -> None:
    with pytest.raises(Violation, match="in a batch of one prompt it scores"):
        CHECKS["no_leak_between_images"](Subject(REDNESS, RednessConfig(), reward=OncePerPrompt()))


FILE = """
import torch
from dataclasses import dataclass

class Sharpness(torch.nn.Module):
    def forward(self, images):
        return images.diff(dim=-1).square().mean((1, 2, 3)) + images.mean((1, 2, 3))

def brightness(images, prompts):
    return images.mean((1, 2, 3)).detach() * torch.tensor([float(len(prompt)) for prompt in prompts])

def compared(images):
    return images.square().mean((1, 2, 3)) - images.mean()

class Asks(torch.nn.Module):
    def __init__(self, path): super().__init__()

@dataclass
class Other:
    value: int = 0
"""


def check(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["rewards", "check", *words])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("mine.py")
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_reward_in_a_file_is_checked_with_what_its_calls_show(file: Path) -> None:
    result = check("mine.py:Sharpness")
    assert result.exit_code == 0, result.output
    assert (
        "mine.py:Sharpness: takes images, and each frame of a video; has a gradient; reads no prompt" in result.output
    )
    count = len(CHECKS) - 2
    assert f"mine.py:Sharpness: {count} of {count} checks passed" in result.output
    result = check("mine.py:brightness")
    assert result.exit_code == 0, result.output
    assert "has no gradient: methods that need none train on it; reads the prompt" in result.output
    result = check("mine.py:compared")
    assert result.exit_code == 1
    assert "broken no_leak_between_images" in result.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.py:Sharpness"], "nothing.py: no such file"),
        (["mine.py:Sharpnes"], "mine.py:Sharpnes: it defines no such name; name one of Sharpness, brightness"),
        (["mine.py:Asks"], "mine.py: Asks() raised TypeError"),
        (["mine.py:Other"], "reward 'Other': it is a Other; give a module, or a function of images"),
        (["mine.py:Sharpness", "--small"], "--small: a reward in a file has no config; leave it out"),
        (["mine.py:Sharpness", "--prompt", "a"], "--prompt: the checks need three different prompts"),
    ],
)
def test_a_file_that_cannot_be_checked_is_one_sentence(words: list[str], sentence: str, file: Path) -> None:
    result = check(*words)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_a_folder_that_a_file_puts_first_for_its_imports_stays_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    library = file.parent.resolve() / "library"
    library.mkdir()
    (library / "of_this_reward.py").write_text("FACTOR = 2.0\n", encoding="utf-8")
    file.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(library)!r})\n"
        "def brightness(images):\n"
        "    from of_this_reward import FACTOR\n"
        "    return FACTOR * images.mean((1, 2, 3))\n",
        encoding="utf-8",
    )
    result = check("mine.py:brightness")
    assert result.exit_code == 0, result.output
    assert str(library) in sys.path
    assert str(file.parent.resolve()) not in sys.path


def test_a_file_that_cannot_be_run_is_named_with_its_line(file: Path) -> None:
    file.write_text("import torch\ntorch.nothing()\n", encoding="utf-8")
    with pytest.raises(DraftError, match=r"mine.py: running it raised AttributeError.*mine.py:2"):
        subject_of_file("mine.py:Sharpness")


class KnownOnly(RednessConfig):
    """It can read prompts about colours alone."""

    def check_prompts(self, prompts: Any) -> None:
        for prompt in prompts:
            if "red" not in prompt:
                raise DraftError(f"prompt {prompt!r} names no colour", next="name one")


def test_prompts_of_ones_own_take_the_place_of_the_specs(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    seen: set[str] = set()

    class Noted(Redness):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            seen.update(prompts)
            return super().forward(images, prompts)

    entry = catalog.rewards["redness"]
    known = replace(entry, spec=replace(entry.spec, config=KnownOnly))
    other = replace(catalog, rewards={**catalog.rewards, "redness": known})
    monkeypatch.setattr(cli_rewards, "load_catalog", lambda: other)
    monkeypatch.setattr(tiny, "Redness", Noted)
    result = check("redness")
    assert result.exit_code == 2
    assert "names no colour; give three prompts that it can read, each with --prompt" in " ".join(result.output.split())
    assert not seen
    prompts = ["a red cat", "a red dog", "a red hat"]
    result = check("redness", *(word for prompt in prompts for word in ("--prompt", prompt)))
    assert result.exit_code == 0, result.output
    assert seen == set(prompts)

    class OfMine(RewardContract):
        kind = "redness"
        prompts = ("x red", "y red", "z red")

    monkeypatch.setattr("draft_core.testing.contract.load_catalog", lambda: other)
    assert OfMine.subject().prompts == OfMine.prompts

    class OfTheSpec(RewardContract):
        kind = "redness"

    with pytest.raises(DraftError, match=r"names no colour; give three prompts .* or as `prompts` of the test's class"):
        OfTheSpec.subject()
