"""The commands `draft new-...`: ask what a plugin is, and write a project for it that passes its own tests."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.prompt import Confirm, Prompt

from draft_core.cli.outputs import writing
from draft_core.cli.terminal import asked, out, with_places
from draft_core.errors import DraftError
from draft_core.publishing.methods import write_method_project
from draft_core.publishing.models import ModelSource, large_files, write_model_project
from draft_core.publishing.projects import Owner
from draft_core.publishing.rewards import RewardTraits, write_reward_project
from draft_core.registry.catalog import load_catalog


class Takes(str, Enum):
    """What a reward is given."""

    image = "image"
    video = "video"


class Reads(str, Enum):
    """What a reward reads beside the pixels."""

    pixels = "pixels"
    prompt = "prompt"
    columns = "columns"


class License(str, Enum):
    """Licences of the code that a project may begin with."""

    apache = "Apache-2.0"
    mit = "MIT"
    none = "none"


Output = Annotated[Path | None, typer.Option("--output", "-o", help="The new folder; the package's name if left out.")]
Licensed = Annotated[
    License | None,
    typer.Option("--license", help="Of the code; with none, package indexes refuse the package until you choose."),
]
WeightsLicense = Annotated[
    str | None, typer.Option("--weights-license", help="Licences of the weights, and of the data behind them.")
]
Author = Annotated[str | None, typer.Option("--author", help="Your name, for the licence and the package's page.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and take what is proposed.")]


def new_reward(
    name: Annotated[str, typer.Argument(help="The kind of the new reward, lower-case words joined by hyphens.")],
    takes: Annotated[
        Takes | None, typer.Option("--takes", help="Single images, or whole videos of video models alone.")
    ] = None,
    reads: Annotated[
        Reads | None,
        typer.Option(
            "--reads",
            help="What the score depends on: the pixels alone, the prompt too, or a column beside it in the list.",
        ),
    ] = None,
    weights: Annotated[
        bool | None, typer.Option("--weights/--no-weights", help="Whether it loads the weights of a network.")
    ] = None,
    port: Annotated[
        bool | None,
        typer.Option("--port/--new", help="A port of a published scorer, which is then compared with it; or new."),
    ] = None,
    weights_license: WeightsLicense = None,
    license: Licensed = None,
    author: Author = None,
    output: Output = None,
    yes: Yes = False,
) -> None:
    """Write a plugin project for a reward of your own: config, reward, tests, README, licence and workflows.

    It passes its contract at once; then replace the score by yours. In a terminal, what is left out is asked
    for; elsewhere it is a new reward of single images that reads the pixels alone and loads no weights.

    Example: draft new-reward warm-light --reads prompt --weights --license MIT
    """
    asks = not yes and is_terminal()
    takes = takes or Takes(_choice(asks, "Does it score images or videos?", [choice.value for choice in Takes]))
    reads = reads or Reads(
        _choice(asks, "What does it read: the pixels alone, the prompt, columns?", [choice.value for choice in Reads])
    )
    if weights is None:
        weights = _yes(asks, "Does it load the weights of a network?")
    if port is None:
        port = takes is Takes.image and _yes(asks, "Is it a port of a published scorer?")
    if weights and weights_license is None:
        weights_license = _weights_license(asks)
    traits = RewardTraits(
        takes=takes.value, reads=reads.value, weights=weights, port=port, weights_license=weights_license
    )
    owner = _owner(asks, license, author)
    folder = output or Path(f"draft-reward-{name}")
    with writing(folder):
        written = write_reward_project(name, folder, traits, owner)
    _tell(written, folder, "docs/write-a-reward.md")
    out.print(f"then: put your score into {folder}/src/*/reward.py", highlight=False, soft_wrap=True)
    out.print(f"before you publish: draft rewards check {name} --release", highlight=False, soft_wrap=True)


def new_method(
    name: Annotated[str, typer.Argument(help="The kind of the new method, lower-case words joined by hyphens.")],
    learner: Annotated[
        bool | None,
        typer.Option(
            "--learner/--plan",
            help="A learner of its own, which turns scores into losses; or another plan: which sampler steps carry "
            "the gradient of DRaFT.",
        ),
    ] = None,
    license: Licensed = None,
    author: Author = None,
    output: Output = None,
    yes: Yes = False,
) -> None:
    """Write a plugin project for a method of your own: config, plan or learner, tests, README, licence and workflows.

    It trains at once; then replace the plan or the learner by yours.

    Example: draft new-method best-half --learner
    """
    asks = not yes and is_terminal()
    if learner is None:
        learner = _yes(asks, "Does it differ from DRaFT in more than the steps that carry the gradient?")
    owner = _owner(asks, license, author)
    folder = output or Path(f"draft-method-{name}")
    with writing(folder):
        written = write_method_project(name, folder, learner=learner, owner=owner)
    _tell(written, folder, "docs/write-a-method.md")


def new_model(
    name: Annotated[str, typer.Argument(help="The alias of the model, lower-case words joined by hyphens.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="A folder in diffusers' format, which is copied; owner/name on the hub; or with --lora an alias.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of a repository on the hub, a commit for choice.")
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option("--lora", help="A LoRA to add to it: a file, a folder, or a run; it is copied."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file with a prompt a line; three are written if left out.")
    ] = None,
    weights_license: WeightsLicense = None,
    license: Licensed = None,
    author: Author = None,
    output: Output = None,
    yes: Yes = False,
) -> None:
    """Write a plugin project that gives a model a short name: spec, prompts, tests, README, licence and workflows.

    The model is a folder in diffusers' format, a repository on the hub, or a LoRA that you trained on one.

    Example: draft new-model my-emoji --base emoji --lora runs/demo --weights-license Apache-2.0
    """
    asks = not yes and is_terminal()
    if base is None and asks:
        base = _said("Which model: a folder, owner/name on the hub, or with a LoRA an alias")
    if base is None:
        raise DraftError("there is no model to name", where="--base", next="give a folder in diffusers' format")
    if lora is None and asks and (said := _said("Which LoRA is added to it: a file, folder or run; none if empty")):
        lora = Path(said)
    if weights_license is None:
        weights_license = _weights_license(asks)
    owner = _owner(asks, license, author)
    source = ModelSource(
        base=base, revision=revision, lora=lora, prompts=prompts, license=weights_license or "none yet"
    )
    folder = output or Path(f"draft-model-{name}")
    with writing(folder):
        written = write_model_project(name, folder, source, load_catalog(), owner)
    _tell(written, folder, "docs/how-to/publish-a-plugin.md")
    for file in large_files(written):
        size = file.stat().st_size / 1e6
        out.print(f"note: {file} has {size:.0f} MB; ask the index for room first", highlight=False, soft_wrap=True)


def is_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and out.is_terminal


def _owner(asks: bool, license: License | None, author: str | None) -> Owner:
    chosen = license or License(_choice(asks, "Which licence has the code?", [choice.value for choice in License]))
    if author is None and asks:
        author = _said("Who is the author; empty to leave it out")
    return Owner(license=chosen.value, author=author or None)


def _weights_license(asks: bool) -> str | None:
    return (asks and _said("Under which licence are the weights; empty if you do not know yet")) or None


def _choice(asks: bool, question: str, choices: Sequence[str]) -> str:
    """The answer, or the first choice where nobody is asked."""
    if not asks:
        return choices[0]
    return asked(partial(Prompt.ask, question, choices=list(choices), default=choices[0], console=out))


def _yes(asks: bool, question: str) -> bool:
    return asks and asked(partial(Confirm.ask, question, default=False, console=out))


def _said(question: str) -> str:
    return asked(partial(Prompt.ask, question, default="", show_default=False, console=out)).strip()


def _tell(written: Sequence[Path], folder: Path, page: str) -> None:
    for path in written:
        out.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"next: pip install -e '{folder}[test]' && pytest {folder}", highlight=False, markup=False, soft_wrap=True
    )
    out.print(f"more: {with_places(page)}", highlight=False, markup=False, soft_wrap=True)
