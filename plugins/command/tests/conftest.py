"""A reward made of a few lines of Python, and images."""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from draft_reward_command import CommandConfig, CommandPerPromptConfig
from draft_reward_command.reward import CommandReward

Made = Callable[..., CommandReward]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary files are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def made(tmp_path: Path, temporary: Path) -> Iterator[Made]:
    """Makes a reward of a program's text; at the end its processes and files are gone."""
    rewards: list[CommandReward] = []

    def make(program: str, *, prompts: bool = False, **fields: Any) -> CommandReward:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(program), encoding="utf-8")
        config = CommandPerPromptConfig if prompts else CommandConfig
        fields = {"command": (sys.executable, str(script)), "folder": str(tmp_path), **fields}
        rewards.append(CommandReward(config(**fields)))
        return rewards[-1]

    yield make
    for reward in rewards:
        if child := reward.program._child:
            child.close()
    assert list(temporary.iterdir()) == []


@pytest.fixture
def images() -> torch.Tensor:
    """Three grey images (3, 3, 5, 7) of levels 0, 51 and 255."""
    return torch.tensor([0.0, 0.2, 1.0])[:, None, None, None].expand(3, 3, 5, 7)
