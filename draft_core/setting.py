"""What settings classes share: how a field is described and bounded, which fields are paths, and what names prompts."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from draft_core.errors import DraftError, RecipeError

Settings = TypeVar("Settings")

MOST_STEPS = 10_000  # of a sampler; pipelines are trained on 1000
MOST = 100_000  # images of one pass or prompt, passes of one update, ranks of a LoRA
SCHEDULES = ("timesteps", "sigmas")  # arguments of a call by which its steps are given whole: no other number counts
# Arguments of a call that say how many images it makes of each prompt.
IMAGE_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
# Values of `gradient_checkpointing`: for a denoiser call that is computed again in so many parts of the batch (None
# makes one of each row), and for all calls that are computed again whole, sooner or later.
IN_PARTS: dict[Any, int | None] = {"lean": 1, "halves": 2, "sliced": None}
RECOMPUTING = (True, "blocks", *IN_PARTS)
LARGEST_SEED = 2**62  # what is added to it still fits torch's generators

CLOSED = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic validates a settings class


def setting(description: str, default: Any) -> Any:
    """A dataclass field with its default and the text that the recipe's schema shows."""
    return field(default=default, metadata={"description": description})


def closed(cls: type[Settings]) -> type[Settings]:
    """A settings class that refuses unknown and missing names in the words in which recipes are refused.

    Python's own words for them end a program with a traceback. pydantic fills such classes without their constructor.
    """
    made, known = cls.__init__, {it.name: it for it in fields(cls)}  # type: ignore[arg-type]

    @wraps(made)
    def __init__(self: Settings, **given: Any) -> None:
        if unknown := [name for name in given if name not in known]:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"remove it; the fields there are {', '.join(known)}"
            raise RecipeError(f"unknown field {unknown[0]!r}", where=f"{cls.__name__}: {unknown[0]}", next=advice)
        for name, it in known.items():
            if name not in given and it.default is MISSING and it.default_factory is MISSING:
                raise RecipeError("the field is missing", where=f"{cls.__name__}: {name}", next="give it")
        made(self, **given)

    cls.__init__ = __init__  # type: ignore[assignment]
    return cls


BOUNDS = (
    ("ge", "at least", operator.ge),
    ("gt", "greater than", operator.gt),
    ("le", "at most", operator.le),
    ("lt", "less than", operator.lt),
)


def check_bounds(settings: Any) -> None:
    """That every field of a settings class has the type and keeps the bounds of its annotation.

    Arguments:
        settings: an instance of a dataclass, with fields that are numbers, texts, `Literal`, tuples or unions of these;
            what is of another type is not looked into.

    Raises:
        DraftError: that names the first field which does not.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if wanted := _breach(value, hint):
            raise DraftError(
                f"{value!r} is not {wanted}", where=f"{type(settings).__name__}: {name}", next="give such a value"
            )


def _breach(value: Any, hint: Any) -> str | None:
    """What a value of this annotation is, where this one is not."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        beyond = (_beyond(value, bound) for bound in inner[1:])
        return _breach(value, inner[0]) or next(filter(None, beyond), None)
    if origin is Literal:
        return None if value in inner else f"one of {', '.join(inner)}"
    if origin in (Union, UnionType):
        found = [_breach(value, member) for member in inner]
        return None if None in found else " or ".join(wanted for wanted in found if wanted)
    if origin is tuple and inner[-1] is ...:
        if not isinstance(value, (tuple, list)):
            return "a list"
        wrong = next((wanted for item in value if (wanted := _breach(item, inner[0]))), None)
        return wrong and f"a list of which each is {wrong}"
    if origin is tuple:
        if not isinstance(value, (tuple, list)) or len(value) != len(inner):
            return f"{len(inner)} values"
        return next((wanted for item, part in zip(value, inner, strict=True) if (wanted := _breach(item, part))), None)
    if hint is NoneType:
        return None if value is None else "None"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is str:
        return None if isinstance(value, str) else "a text"
    if hint is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if is_number and math.isfinite(value) else "a finite number"
    return None


def _beyond(value: Any, bound: Any) -> str | None:
    """The bound, in words, if the value is beyond it."""
    for name, words, holds in BOUNDS:
        if (limit := getattr(bound, name, None)) is not None and not holds(value, limit):
            return f"{words} {limit}"
    return None


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


@closed
@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A file of prompts and which of its columns holds them; the columns beside it are kept."""

    __pydantic_config__ = CLOSED

    file: Annotated[str, RecipePath(of="file")] = field(
        metadata={"description": "A .txt, .csv, .tsv, .json, .jsonl or .yaml file, relative to the recipe's folder."}
    )
    column: str | None = setting(
        "The column of the prompts; left out, the one called prompt, prompts, caption or text.", None
    )

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is of another type."""
        check_bounds(self)


# What a recipe can say where prompts are asked for: the name of a plugin's list or of a file, the prompts themselves,
# as texts or as rows with further columns, or a file with the column to read.
Prompts = Annotated[str, RecipePath(of="file", absent="keep")] | tuple[str | dict[str, Any], ...] | PromptFile


def images_per_prompt(call: Mapping[str, Any]) -> int:
    """How many images a pipeline's call with these arguments makes of each prompt."""
    return next((int(call[name]) for name in IMAGE_COUNTS if call.get(name)), 1)


def check_target_steps(last: int, prefix_steps: int | None, steps: int) -> None:
    """Refuses numbers of steps for targets that a chain of `steps` does not have.

    Raises:
        RecipeError: naming the field.
    """
    at_most("last", last, steps)
    if prefix_steps is not None:
        at_most("prefix_steps", prefix_steps, steps, spare=1)


def at_most(
    field: str, value: int, steps: int, *, spare: int = 0, spared: str = "sampler steps before the last"
) -> None:
    """Refuses a method's number of steps beyond the `steps` of the chain, less those that it must `spare`.

    Raises:
        RecipeError: naming the field.
    """
    most = steps - spare
    if value > most:
        raise RecipeError(
            f"{field} = {value} is larger than the number of {spared if spare else 'sampler steps'}, {most}",
            where=f"method.{field}",
            next=f"use {field} <= {most}, or raise model.num_inference_steps",
        )
