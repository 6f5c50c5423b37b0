"""Which image belongs to which prompt: the file that says it, read without torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from draft_core.errors import DraftError

NEXT = "map each prompt to the path of an image, such as `a red disc: disc.png`"


def read_references(path: Path) -> dict[str, Path]:
    """Prompt -> image file, which is there.

    Arguments:
        path: of a .yaml, .yml or .json file; the paths in it begin at its folder.

    Raises:
        DraftError: if it cannot be read, maps anything but texts to texts, or names an image file that is missing.
    """
    where = str(path)
    try:
        found = _content(path)
    except Exception as error:  # whatever a damaged file leads a parser to
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DraftError(f"cannot be read ({reason})", where=where, next=NEXT) from error
    if not isinstance(found, Mapping) or not found:
        raise DraftError("it maps no prompt to an image", where=where, next=NEXT)
    references = {}
    for prompt, name in found.items():
        if not isinstance(prompt, str) or not isinstance(name, str) or not name:
            raise DraftError(f"{prompt!r}: {name!r} is no prompt with a path", where=where, next=NEXT)
        references[prompt] = path.parent / Path(name).expanduser()
        if not references[prompt].is_file():
            raise DraftError(
                f"there is no file {str(references[prompt])!r} for the prompt {prompt!r}",
                where=where,
                next="correct it",
            )
    return references


def reference_of(prompt: str, references: Mapping[str, Path], *, where: str) -> Path:
    """The image file of a prompt.

    Raises:
        DraftError: if it has none, with the nearest prompt that has.
    """
    if prompt in references:
        return references[prompt]
    near = difflib.get_close_matches(prompt, references, n=1, cutoff=0.6)
    hint = f" (the nearest that has is {near[0]!r})" if near else ""
    raise DraftError(f"prompt {prompt!r} has no reference image{hint}", where=where, next="add it to the map")


def _content(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        return json.loads(text, object_pairs_hook=_without_repetition)
    if path.suffix.lower() in (".yaml", ".yml"):
        return YAML(typ="safe", pure=True).load(text)
    raise ValueError("it ends neither in .yaml nor in .json")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return found
