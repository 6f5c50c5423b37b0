"""Writes the project of a reward, as its author says what it reads: the files that `draft new-reward` leaves.

Every combination passes its own tests as written. `plugins/template` is the plainest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draft_core.errors import DraftError
from draft_core.publishing.projects import Owner, Project, write_files

Takes = Literal["image", "video"]
Reads = Literal["pixels", "prompt", "columns"]


@dataclass(frozen=True, kw_only=True)
class RewardTraits:
    """What a reward is, as far as its project depends on it.

    Arguments:
        takes: "image", or "video" for whole videos.
        reads: "pixels" and nothing else, the "prompt" too, or "columns" that stand beside it in the list of prompts.
        weights: whether it loads the weights of a network.
        port: whether it is a port of a published scorer, which it is then compared with.
        weights_license: of the weights, if it loads any; None leaves it open.

    Raises:
        DraftError: at construction, for a licence of weights without weights, and for a port of a scorer of videos:
            references are called with single images.
    """

    takes: Takes = "image"
    reads: Reads = "pixels"
    weights: bool = False
    port: bool = False
    weights_license: str | None = None

    def __post_init__(self) -> None:
        if self.weights_license is not None and not self.weights:
            raise DraftError(
                "it loads no weights", where="--weights-license", next="give --weights too, or leave it out"
            )
        if self.port and self.takes == "video":
            raise DraftError(
                "a reference scores single images, so a reward of videos cannot name one",
                where="--port",
                next="leave it out, and compare the videos in tests of your own",
            )


def reward_project(kind: str, traits: RewardTraits | None = None, owner: Owner | None = None) -> dict[str, str]:
    """The files of a plugin that offers reward `kind`: path inside its folder -> content.

    Raises:
        DraftError: if `kind` is no possible name.
    """
    traits = traits or RewardTraits()
    files = {
        "README.md": "README.md.j2",
        "src/{module}/__init__.py": "naming.py.j2",
        "src/{module}/reward.py": "reward.py.j2",
        **({"src/{module}/reference.py": "reference.py.j2"} if traits.port else {}),
        "tests/test_{stem}.py": "test.py.j2",
    }
    project = Project(
        what="reward",
        name=kind,
        description=f"A differentiable reward for diffusion models: {kind}",
        files=files,
        values=_values(traits),
        dependencies=(*(("numpy>=1.26", "pillow>=10.1") if traits.port else ()), "torch>=2.6"),
        check=f"draft rewards check {kind} --release && {check_command(kind, traits)}",
    )
    return project.rendered(owner or Owner())


def check_command(kind: str, traits: RewardTraits) -> str:
    """The command that runs the contract on the reward; where it has weights, on a small seeded instance."""
    return f"draft rewards check {kind}{' --small' if traits.weights else ''}"


def write_reward_project(
    kind: str, folder: Path, traits: RewardTraits | None = None, owner: Owner | None = None
) -> list[Path]:
    """Writes `reward_project(kind, traits, owner)` into `folder`; returns the files.

    Raises:
        DraftError: if `folder` is not empty, or `kind` is no possible name.
    """
    return write_files(reward_project(kind, traits, owner), folder)


def _values(traits: RewardTraits) -> dict[str, object]:
    """What the templates say of the example that they compute."""
    thing = "a video" if traits.takes == "video" else "an image"
    steady = ", and how steady it is" if traits.takes == "video" else ""
    network = {
        "pixels": f"what a network says of {thing}",
        "prompt": f"how well {thing} fits its prompt, by a network",
        "columns": f"how much {thing} is like the image in its prompt's row, by a network",
    }
    plain = {
        "pixels": f"how much warmer than cold {thing} is",
        "prompt": f"how much {thing} has the colour that its prompt names",
        "columns": f"how near the colours of {thing} are to the one in its prompt's row",
    }
    summary = (network if traits.weights else plain)[traits.reads] + steady
    is_plainest = traits == RewardTraits(port=traits.port)
    score, unit, score_range = _score(traits)
    return {
        "video": traits.takes == "video",
        "reads": traits.reads,
        "weights": traits.weights,
        "port": traits.port,
        "weights_license": traits.weights_license,
        "colour_of": traits.reads if traits.reads != "pixels" and not traits.weights else None,
        "summary": f"{summary}: red minus blue" if is_plainest else summary,
        "summary_short": summary,
        "is_plainest": is_plainest,
        "score": score,
        "unit": unit,
        "score_range": score_range,
        "input": {
            "pixels": "prompts are not read",
            "prompt": "the prompt is read",
            "columns": "a column of the list of prompts is read",
        }[traits.reads],
    }


def _score(traits: RewardTraits) -> tuple[str, str, str]:
    """The score in words, its unit and its range."""
    minus = ", minus the mean squared difference of following frames" if traits.takes == "video" else ""
    if traits.weights and traits.reads == "pixels":
        return f"the network's output times the strength{minus}", "output of the network", "(-inf, inf)"
    if traits.weights:
        bounds = "(-inf, 1]" if minus else "[-1, 1]"
        return f"a cosine times the strength{minus}; higher is more alike", "cosine", f"{bounds} times the strength"
    if traits.reads == "columns":
        text = f"minus the mean squared distance of the colours times the strength{minus}; higher is nearer"
        return text, "squared level", f"[{-2 if minus else -1}, 0] times the strength"
    bounds = "[-2, 1]" if minus else "[-1, 1]"
    if traits.reads == "prompt":
        return f"the colour asked for minus half of both others{minus}", "level", f"{bounds} times the strength"
    if minus:
        return f"mean red minus mean blue{minus}; higher is warmer", "level", f"{bounds} times the strength"
    return (
        "mean red minus mean blue, from -1 to 1 times the strength; higher is warmer",
        "level",
        f"{bounds} times the strength",
    )
