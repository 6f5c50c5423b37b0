"""Classes by index or by name, and what to say when a name is unknown or means several."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from draft_core.errors import DraftError

_SHOWN = 3  # how many of several meanings or suggestions a message lists


def class_index(chosen: int | str, names: Sequence[Sequence[str]] | None, count: int, *, where: str) -> int:
    """The index of a class.

    Letter case and underscores do not matter. A name that stands in several classes means the one that has no
    other name, if there is just one.

    Arguments:
        chosen: an index, or one of the class's names.
        names: for each class all its names, the last of them the full one; None where they are not known.
        count: how many classes there are.
        where: who asks, such as "reward 'adversarial': target".

    Raises:
        DraftError: if there is no such class, or several.
    """
    if isinstance(chosen, int):
        if 0 <= chosen < count:
            return chosen
        raise DraftError(f"there is no class {chosen}", where=where, next=f"use 0 to {count - 1}")
    if names is None:
        raise DraftError(
            f"the classes of this classifier have no known names, {chosen!r} cannot be looked up",
            where=where,
            next=f"give an index, 0 to {count - 1}",
        )
    wanted = _plain(chosen)
    found = [index for index, each in enumerate(names) if wanted in map(_plain, each)]
    exact = [index for index in found if _plain(names[index][-1]) == wanted]
    for candidates in (found, exact):
        if len(candidates) == 1:
            return candidates[0]
    if found:
        meanings = "; ".join(f"{index}: {names[index][-1]} ({names[index][0]})" for index in found[:_SHOWN])
        raise DraftError(
            f"{chosen!r} names {len(found)} classes ({meanings})", where=where, next="give the index or another name"
        )
    known = {_plain(name): (name, index) for index, each in enumerate(names) for name in each}
    near = [known[name] for name in difflib.get_close_matches(wanted, known, n=_SHOWN, cutoff=0.6)]
    advice = " or ".join(f"{name!r} ({index})" for name, index in near)
    raise DraftError(
        f"there is no class {chosen!r} among the {count}",
        where=where,
        next=f"did you mean {advice}?" if near else f"give the index, 0 to {count - 1}",
    )


def all_names(label: str, *others: str) -> tuple[str, ...]:
    """The names in a label such as "tench, Tinca tinca", after the `others` and before the whole label."""
    parts = [part.strip() for part in label.split(",")]
    return (*others, *parts, *([label] if len(parts) > 1 else []))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
