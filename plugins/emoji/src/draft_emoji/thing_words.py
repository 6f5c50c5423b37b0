"""The words of single emoji: which of the judge's things a prompt names."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from draft_core.errors import RewardError

JUDGE = Path(__file__).parent / "judge"


@cache
def judged_things() -> dict[str, int]:
    """Each of the 274 things that the judge tells apart -> its place among the answers."""
    config = json.loads((JUDGE / "config.json").read_text(encoding="utf-8"))
    return {name: int(number) for number, name in config["id2label"].items()}


def named_thing(prompt: str, *, where: str) -> int:
    """The number of the thing that the prompt asks for, a part between commas as in "3d style, a red apple, fruit".

    Arguments:
        where: who asks; it begins an error's sentence.

    Raises:
        RewardError: if no part is one of the things, or two are.
    """
    things = judged_things()
    found = {things[part] for part in map(str.strip, prompt.lower().split(",")) if part in things}
    if len(found) != 1:
        raise RewardError(
            f"the prompt {prompt!r} names {'two of its' if found else 'none of its'} {len(things)} things",
            where=where,
            next="ask for one thing in the words of emoji-train or emoji-heldout: 'a fox', '3d style, a fox'",
        )
    return found.pop()
