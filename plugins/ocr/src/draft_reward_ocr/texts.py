"""Which letters the reader knows, and which text a prompt asks for; no torch."""

from __future__ import annotations

import re
import string

from draft_core.errors import RewardError

# In the order of easyocr's english_g2, whose class 0 is the blank.
LETTERS = string.digits + string.punctuation + " €" + string.ascii_uppercase + string.ascii_lowercase

QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


def unreadable(text: str) -> str | None:
    """The first letter that the reader does not know."""
    return next((letter for letter in text if letter not in LETTERS), None)


def quoted(prompt: str, *, where: str) -> str:
    """The text that a prompt has in double quotes, straight or curly.

    Raises:
        RewardError: if there is none, several, an empty one, or one that the reader cannot read.
    """
    found: list[str] = [straight or curly for straight, curly in QUOTED.findall(prompt)]
    if len(found) != 1 or not found[0]:
        count = "no text" if not any(found) else f"{len(found)} texts"
        raise RewardError(
            f"prompt {prompt!r} has {count} in double quotes",
            where=where,
            next='write the one text that is to be read in quotes, such as: a sign that says "OPEN"',
        )
    if letter := unreadable(found[0]):
        raise RewardError(
            f"the reader does not know {letter!r} of {found[0]!r}", where=where, next="use English letters and digits"
        )
    return found[0]
