"""The errors a user can meet, each a sentence that says what, where and what to do next."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

__all__ = [
    "CheckpointError",
    "DraftError",
    "Interrupted",
    "PluginError",
    "RecipeError",
    "RewardError",
    "SamplerError",
]


class DraftError(Exception):
    """A mistake or a missing thing that the user can mend; the command line prints it and exits with code 2.

    Arguments:
        what: what was wrong, without a full stop.
        where: the file, field or plugin (with its version) it was found in.
        next: what to do about it, as an imperative.

    Attributes:
        is_reported: whether the main process of several reports it, so that this one need not.
    """

    exit_code = 2
    is_reported = False

    def __init__(self, what: str, *, where: str | None = None, next: str | None = None) -> None:
        self.what, self.where, self.next = what, where, next
        place = f"{where}: " if where else ""
        remedy = f"; {next}" if next else ""
        sentence = _printable(f"{place}{what}{remedy}")
        super().__init__(sentence if sentence.endswith("?") else f"{sentence}.")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.next)


def _printable(text: str) -> str:
    """One line that any terminal shows as it is: a value that a user gave may hold line ends and control characters."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _rebuild(cls: type[DraftError], what: str, where: str | None, next: str | None) -> DraftError:
    return cls(what, where=where, next=next)


class RecipeError(DraftError):
    """A recipe, or a value given for one of its fields, that cannot be run."""


class PluginError(DraftError):
    """A plugin that is missing, broken, or in conflict with another."""


class RewardError(DraftError):
    """A reward that broke the contract of `draft_core.rewards.protocol.Reward`."""


class SamplerError(DraftError):
    """A pipeline or a plan that the differentiable sampler cannot drive."""


class Interrupted(DraftError):
    """A signal stopped a run; what was reached is saved.

    Arguments:
        what, where, next: as in `DraftError`.
        exit_code: 128 plus the signal's number, as shells report it; 130 is Ctrl-C.
    """

    def __init__(self, what: str, *, where: str | None = None, next: str | None = None, exit_code: int = 130) -> None:
        super().__init__(what, where=where, next=next)
        self.exit_code = exit_code


class CheckpointError(DraftError):
    """A checkpoint that is missing, torn, or belongs to another run."""


def as_fields(error: DraftError) -> dict[str, str | None]:
    """An error as JSON can say it to another process."""
    return {"type": type(error).__name__, "what": error.what, "where": error.where, "next": error.next}


def from_fields(fields: Mapping[str, Any]) -> DraftError:
    """The error that another process says by `as_fields`; a `RewardError` where this one knows no such class."""
    known: list[type[DraftError]] = [DraftError, *DraftError.__subclasses__()]
    classes = {cls.__name__: cls for cls in known}
    return classes.get(fields["type"], RewardError)(fields["what"], where=fields["where"], next=fields["next"])


def require_finite(number: float, *, where: str) -> None:
    """Refuses a number that is infinite or none.

    Raises:
        DraftError: with that number.
    """
    if not math.isfinite(number):
        raise DraftError(f"{number} is not a finite number", where=where, next="give one, such as 0.5")


def require_from_one(number: Any, *, where: str) -> None:
    """Refuses what is not a whole number of 1 or more.

    Raises:
        DraftError: with that number.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise DraftError(f"{number!r} is not a whole number from 1 on", where=where, next="give one")


def list_of_prompts(prompts: Iterable[str], *, where: str) -> list[str]:
    """Prompts as a list.

    Raises:
        DraftError: if it is one text, which would be taken letter by letter, if one is no text, or if there is none.
    """
    if isinstance(prompts, str):
        raise DraftError(f"the prompts are one text, {prompts!r}", where=where, next="give a list of them")
    found = list(prompts)
    if not found:
        raise DraftError("there are no prompts", where=where, next="give at least one")
    if (other := next((prompt for prompt in found if not isinstance(prompt, str)), None)) is not None:
        raise DraftError(f"{other!r} among the prompts is no text", where=where, next="give texts")
    if broken := next((half for prompt in found if (half := half_character(prompt))), None):
        raise DraftError(f"a prompt holds {broken}, which is no character", where=where, next=WHOLE)
    return found


SHOWN = 200  # characters of a value in an error


def short(text: str) -> str:
    """No more of a text than an error can show."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


WHOLE = "write the character itself, in UTF-8"


def half_character(text: str) -> str | None:
    """The first half of a UTF-16 pair in a text, as Python escapes it; None where there is none.

    JSON and YAML can spell one, and so does Python a byte of a command line that is not UTF-8; nothing can encode it.
    """
    found = re.search("[\ud800-\udfff]", text)
    return None if found is None else ascii(found[0])[1:-1]


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def with_type(error: BaseException, shorten: Callable[[str], str] = str) -> str:
    """ "TYPE: TEXT": what an error is and says, on one line; `shorten` cuts the text."""
    return f"{type(error).__name__}: {shorten(one_line(error))}"


def raised(error: BaseException, shorten: Callable[[str], str] = str) -> str:
    """ "TYPE: TEXT (FILE:LINE)": an error of a plugin's code, and where in that code it arose."""
    return f"{with_type(error, shorten)}{raised_at(error)}"


CALLERS = {"draft_core", "importlib", "pluggy", "pydantic", "torch"}  # what stands between us and a plugin's code


def raised_at(error: BaseException) -> str:
    """ " (FILE:LINE)": where in a plugin's own code an error arose; empty if it passed through none.

    A plugin is what our code, or a library on its behalf, called first. Of its lines it is the innermost, also where
    that called a library.
    """
    places = [
        (str(frame.f_globals.get("__name__", "?")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    plugin = next((package for package, _, _ in places if package not in CALLERS), None)
    lines = [f" ({file}:{line})" for package, file, line in places if package == plugin]
    return lines[-1] if lines else ""
