"""Small rewards with a network, a column, parts or bad manners; the environments of tests get a copy of this file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from draft_core.rewards import FrozenModule, checked_images


class Tint(FrozenModule):
    """A seeded network of two layers, times a factor; a part of its score is the first layer's mean."""

    def __init__(self, factor: float, strength: float) -> None:
        super().__init__()
        self.factor = factor * strength
        with torch.random.fork_rng():
            torch.manual_seed(round(factor))
            self.first, self.second = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 1, 3)

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.score_with_components(images, prompts)[0]

    def score_with_components(
        self, images: torch.Tensor, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        images = checked_images(images, prompts, where="reward 'tint'").clamp(-1, 2)  # used once, as the guide says
        hidden = self.first(images).float().tanh()
        scores = self.factor * self.second(hidden).float().mean(dim=(1, 2, 3))
        return scores + images.std(dim=(1, 2, 3)) / 10, {"hidden": hidden.mean(dim=(1, 2, 3))}


def old_tint(config: Any) -> Tint:
    """In one process with the other, where nothing is pinned."""
    return Tint(2.0, config.strength)


def new_tint(config: Any) -> Tint:
    """In one process with the other, where nothing is pinned."""
    return Tint(3.0, config.strength)


class Columned(FrozenModule):
    """Minus the squared distance from the first pixel of each prompt's image, weighted, plus the length of its text."""

    def forward(
        self, images: torch.Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> torch.Tensor:
        rows = zip(images, columns["target"], columns["weight"], columns["text"], strict=True)
        return torch.stack(
            [len(text) - weight * (image - pixels[:, :1, :1]).square().mean() for image, pixels, weight, text in rows]
        ).float()


def columned(config: Any) -> Columned:
    return Columned()


class Still(FrozenModule):
    """How still a video is."""

    takes = "video"

    def forward(self, videos: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return -videos.diff(dim=1).square().mean(dim=(1, 2, 3, 4)).float()


def still(config: Any) -> Still:
    return Still()


class Flat(FrozenModule):
    """The mean level, without gradient."""

    @torch.no_grad()
    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images.float().mean(dim=(1, 2, 3))


def flat(config: Any) -> Flat:
    return Flat()


class Odd(FrozenModule):
    """The mean level, and what the first prompt says."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker

    def forward(self, images: torch.Tensor, prompts: Sequence[str]) -> Any:
        word = prompts[0]
        if word == "print":
            print("garbage {}[]", flush=True)
            os.system("echo more garbage")
            sys.stdin.read()
        elif word == "hang":
            print("waiting for a licence server", file=sys.stderr, flush=True)
            time.sleep(60)
        elif word == "exit":
            print("cannot go on", file=sys.stderr, flush=True)
            os._exit(7)
        elif word == "kill" or (word == "kill once" and not Path(self.marker).exists()):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "raise":
            raise KeyError("a bug")
        elif word == "list":
            return [0.0]
        elif word == "memory":
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return images.float().mean(dim=(1, 2, 3))


def odd(config: Any) -> Odd:
    if config.cannot_be_made:
        raise ValueError("no such weights")
    return Odd(config.marker)
