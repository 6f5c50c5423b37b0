"""How the command line talks: its two consoles, its progress display, and the words that several commands share."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import draft_core
from draft_core.errors import DraftError, require_finite
from draft_core.json_text import json_text
from draft_core.registry.catalog import Catalog

T = TypeVar("T")

out = Console()
err = Console(stderr=True, soft_wrap=True)

Overrides = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as train.steps=50.")
]


class ProgressLines:
    """A live bar for each stage; where the output is no terminal, a line every few seconds instead."""

    seconds_between_lines = 10.0

    def __init__(self) -> None:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = Progress(TextColumn("{task.description:>7}"), *columns, console=out, disable=not out.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.last_line = 0.0

    def __enter__(self) -> ProgressLines:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """Shows that `done` of `total` are done; `note` says of what, or how it goes. Stage "note" is a note alone."""
        if stage == "note":
            out.print(escape(note), highlight=False, soft_wrap=True)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
        self.bars.update(self.tasks[stage], completed=done, note=note)
        now = time.monotonic()
        if not out.is_terminal and (done == total or now - self.last_line > self.seconds_between_lines):
            self.last_line = now
            out.print(f"{stage} {done}/{total} {note}", highlight=False)


def print_json(value: Any) -> None:
    """`value` as JSON on the standard output."""
    typer.echo(json_text(value, indent=2))


@contextmanager
def prints_aside(wanted: bool = True) -> Iterator[None]:
    """What plugins and libraries print inside goes to the standard error, so that the output is the command's alone."""
    with redirect_stdout(sys.stderr) if wanted else nullcontext():
        yield


def print_problems(catalog: Catalog) -> None:
    """Plugins that could not be read, and names that two of them claim."""
    for plugin in catalog.broken:
        text = f"{plugin.distribution} ({plugin.entry_point}): {plugin.reason}"
        out.print(f"[red]broken:[/] {escape(text)}", highlight=False, soft_wrap=True)
    for name, claimants in catalog.conflicts.items():
        claims = " and ".join(map(str, claimants))
        out.print(f"[red]in conflict:[/] {name!r} is claimed by {claims}", highlight=False, soft_wrap=True)


def given_fields(overrides: list[str]) -> dict[str, Any]:
    """The fields that `--set` gives to a single config."""
    from draft_core.recipe.yaml_text import set_field

    fields: dict[str, Any] = {}
    for override in overrides:
        set_field(fields, override)
    return fields


def with_places(text: str) -> str:
    """A text with its pages, such as docs/write-a-reward.md, named by where they lie on this machine.

    The wheel carries the pages that commands cite; in a source tree they are beside the package.
    """
    package = Path(draft_core.__file__).parent
    places = [folder for folder in (package, package.parent) if (folder / "docs").is_dir()]
    return re.sub(r"\bdocs/[\w/-]+\.md", lambda page: _placed(page[0], places), text)


def _placed(page: str, places: list[Path]) -> str:
    return next((str(folder / page) for folder in places if (folder / page).is_file()), page)


def asked(ask: Callable[[], T]) -> T:
    """The answer of a person.

    Raises:
        DraftError: if there is none to ask.
    """
    try:
        return ask()
    except EOFError:
        raise DraftError(
            "there is nobody to ask", where="terminal", next="give the options that it asks for, or --yes"
        ) from None


def number(text: str, *, where: str) -> float:
    """The finite number that a word of a command says.

    Raises:
        DraftError: if it says none.
    """
    try:
        value = float(text)
    except ValueError:
        raise DraftError(f"{text!r} is not a number", where=where, next="write for example 0.5") from None
    require_finite(value, where=where)
    return value


def quiet_libraries() -> None:
    """The libraries' own loading bars would tear our progress display apart."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def join_help_lines(app: typer.Typer) -> None:
    """Makes each paragraph of the help of an app's commands one line, which the terminal then wraps.

    Arguments:
        app: with all its commands; those of the apps in it are reached as well.
    """
    for command in app.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            join_help_lines(group.typer_instance)
