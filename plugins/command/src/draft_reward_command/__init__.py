"""Any program as a reward: names the two rewards and their options, and imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = ["CommandConfig", "CommandPerPromptConfig", "draft_register_rewards"]


class _ProgramSettings(RewardConfig):
    """Which program scores, where it runs, and how long it may take."""

    command: tuple[str, ...] = Field(
        min_length=1, description="The program and its arguments, a list of words; no shell reads them."
    )
    folder: Annotated[str, RecipePath(of="folder")] = Field(
        ".", description="The program's working directory, relative to the recipe's folder."
    )
    start: Literal["batch", "once"] = Field(
        "batch",
        description="When the program is started: for every batch, whose last image ends its input, or once for all.",
    )
    timeout: float = Field(
        120.0, gt=0, le=86_400, description="Seconds that the program may take for a batch, its start included."
    )


class CommandConfig(_ProgramSettings):
    """Options of `command`: the program reads the path of an image from each line of its input."""

    kind: Literal["command"] = "command"


class CommandPerPromptConfig(_ProgramSettings):
    """Options of `command-per-prompt`: the program reads an image's path and prompt from each line, as JSON."""

    kind: Literal["command-per-prompt"] = "command-per-prompt"


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The two rewards of this distribution."""
    return [
        _spec("command", CommandConfig, "an image", example="example.py"),
        _spec(
            "command-per-prompt",
            CommandPerPromptConfig,
            "an image and its prompt",
            example="example_per_prompt.py",
            needs_prompt=True,
        ),
    ]


def _spec(kind: str, config: type[RewardConfig], given: str, *, example: str, needs_prompt: bool = False) -> RewardSpec:
    """A reward by a program that is given something; its small instance runs the example program of that name."""
    return RewardSpec(
        kind=kind,
        summary=f"what a program of yours answers for {given}",
        config=config,
        factory="draft_reward_command.reward:CommandReward",
        unit="the program's own",
        differentiable=False,
        needs_prompt=needs_prompt,
        code_license="Apache-2.0",
        small={"command": (sys.executable, str(Path(__file__).with_name(example)))},
    )
