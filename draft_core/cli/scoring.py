"""What a reward reads of columns, as the command line of `draft score` gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draft_core.errors import DraftError
from draft_core.prompt_rows import Column, PromptRow


def given_columns(reward: str, read: Mapping[str, Column], given: Sequence[str]) -> dict[str, str]:
    """Name of a column -> its text, of what stands on the command line as "name=text".

    Arguments:
        reward: its kind.
        read: what it reads, by its own names.

    Raises:
        DraftError: if one is of another form, or of a column that the reward does not read, or one that it reads is
            missing or of another type.
    """
    names = [column.name for column in read.values()]
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            problem = (
                "it is not of the form name=value" if not equals else f"reward {reward!r} reads no column {name!r}"
            )
            known = f"it reads {', '.join(names)}" if names else "leave it out, it reads none"
            raise DraftError(problem, where=f"--column {text}", next=known)
        values[name] = value
    for column in read.values():
        if column.name not in values:
            advice = f"give --column {column.name}=..."
            raise DraftError(f"reward {reward!r} reads column {column.name!r}", where="--column", next=advice)
        column.of(PromptRow("", values), where="--column")
    return values
