"""A prompt with what its list says beside it: how the columns of a list reach pipelines and rewards; no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from draft_core.errors import DraftError

__all__ = ["Column", "ColumnType", "PromptRow", "row_key"]

ColumnType = Literal["text", "number", "image"]

# Arguments of a pipeline's call with a value for each prompt: a text for one encoder of several, or an image, by their
# names in diffusers.
TEXTS = re.compile(r"(negative_)?prompt(_\d+)?")
IMAGES = re.compile(r"(\w+_)?image|(\w+_)?mask(?<!attention_mask)")
PLACE = "{prompt}"  # in control words of a reward: where the prompt stands


class PromptRow(str):
    """A prompt that carries the columns of its row.

    It is its text wherever a text is asked for, and equal to it. Methods hand prompts on, repeat them for several
    images and put them into another order, and the columns stay with their prompt.

    Arguments:
        text: the prompt.
        columns: name -> what the list says: a text, or for who makes rows in Python also a number or a PIL image.
        folder: where the relative paths among the texts begin; None takes the working directory.
    """

    columns: Mapping[str, Any]
    folder: Path | None

    def __new__(cls, text: str, columns: Mapping[str, Any] | None = None, folder: Path | None = None) -> PromptRow:
        """The text, with what stands beside it."""
        row = super().__new__(cls, text)
        row.columns = dict(columns or {})
        row.folder = folder
        return row


@dataclass(frozen=True)
class Column:
    """A column of a list of prompts, as somebody reads it.

    Arguments:
        name: in the list.
        type: "text", "number", or "image" for the path of an image file.
    """

    name: str
    type: ColumnType = "text"

    def of(self, prompt: str, *, where: str, may_be_blank: bool = False) -> Any:
        """What a prompt's row says there: a text, a number, or the path of an image.

        A value that is no text is given as it is.

        Arguments:
            where: who reads it; it begins an error's sentence.
            may_be_blank: an empty text is a value too.

        Raises:
            DraftError: if the prompt has no such column, or the text is blank or of another type.
        """
        columns = getattr(prompt, "columns", {})
        if self.name not in columns:
            raise DraftError(
                f"prompt {_short(prompt)} has no column {self.name!r}",
                where=where,
                next="take the prompts from a list with that column",
            )
        value = columns[self.name]
        if not isinstance(value, str):
            return value
        text = value.strip()
        if not text and not may_be_blank:
            raise DraftError(
                f"column {self.name!r} of prompt {_short(prompt)} is blank",
                where=where,
                next="fill it in, or leave the row out",
            )
        if self.type == "number":
            return _number(text, f"column {self.name!r} of prompt {_short(prompt)}", where)
        if self.type == "image":
            return (getattr(prompt, "folder", None) or Path()) / Path(text).expanduser()
        return text


def row_key(prompt: str) -> str:
    """What tells the rows of a list apart: the prompt, and behind it what its columns hold, where it has any.

    Arguments:
        prompt: a text, or a row.
    """
    columns = getattr(prompt, "columns", None)
    if not columns:
        return str(prompt)
    return "\n".join([str(prompt), *(f"{name}: {value}" for name, value in sorted(columns.items()))])


def plain(prompts: Sequence[str]) -> Sequence[str]:
    """The prompts as they are, and rows among them as their texts alone."""
    return [str(prompt) for prompt in prompts] if any(isinstance(prompt, PromptRow) for prompt in prompts) else prompts


def _number(text: str, what: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DraftError(f"{what} is {text!r}, no finite number", where=where, next="write one, such as 0.5")
    return number


def _short(prompt: str) -> str:
    return repr(str(prompt)) if len(prompt) <= 60 else repr(f"{prompt[:60]}...")


def type_of_argument(name: str) -> ColumnType | None:
    """What an argument of a pipeline's call takes for each prompt, by its name; None for neither texts nor images."""
    if TEXTS.fullmatch(name) and name != "prompt":
        return "text"
    return "image" if IMAGES.fullmatch(name) else None


def column_of_argument(argument: str, name: str) -> Column:
    """The column of that name, as an argument of a pipeline's call reads it."""
    return Column(name, type_of_argument(argument) or "text")
