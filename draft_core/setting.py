"""What settings classes share: how a field is described and bounded, which fields are paths, and what names prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

MOST_STEPS = 10_000  # of a sampler; pipelines are trained on 1000
MOST = 100_000  # images of one pass or prompt, passes of one update, ranks of a LoRA
SCHEDULES = ("timesteps", "sigmas")  # arguments of a call by which its steps are given whole: no other number counts
LARGEST_SEED = 2**62  # what is added to it still fits torch's generators

CLOSED = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic validates a settings class


def setting(description: str, default: Any) -> Any:
    """A dataclass field with its default and the text that the recipe's schema shows."""
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class RecipePath:
    """Marks a text or `Path` of a config as a path: `Annotated[str, RecipePath(("hub", "random"), of="file")]`.

    A relative path begins at the recipe's folder, or at the working directory where it is given on the command line or
    to a function. `~` is the home directory. The path is made absolute when the recipe is loaded, before any weight is.
    An address with `://`, such as hf://owner/name, stays as it is.

    Arguments:
        words: values that are no paths, such as "hub".
        of: what must be there, a "file", a "folder", or "either".
        absent: what happens where there is no such file or folder: "refuse" it; "keep" the text, which then names
            something else, unless it begins like a path; or "make", for what a run writes.
    """

    words: tuple[str, ...] = ()
    of: Literal["file", "folder", "either"] = "either"
    absent: Literal["refuse", "keep", "make"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A file of prompts and which of its columns holds them; the columns beside it are kept."""

    __pydantic_config__ = CLOSED

    file: Annotated[str, RecipePath(of="file")] = field(
        metadata={"description": "A .txt, .csv, .tsv, .json or .jsonl file, relative to the recipe's folder."}
    )
    column: str | None = setting(
        "The column of the prompts; left out, the one called prompt, prompts, caption or text.", None
    )


# What a recipe can say where prompts are asked for: the name of a plugin's list or of a file, the prompts themselves,
# or a file with the column to read.
Prompts = Annotated[str, RecipePath(of="file", absent="keep")] | tuple[str, ...] | PromptFile
