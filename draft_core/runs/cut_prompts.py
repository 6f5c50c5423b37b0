"""What is logged, as notes of a run: prompts that a text encoder cuts, once each, and warnings of draft-core itself.

diffusers prints a line on a cut prompt at every call.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from draft_core.errors import short
from draft_core.runs.progress import Progress, silent

LIBRARIES = ("diffusers", "transformers", "")  # whose loggers print it; the last is Python's own
OWN = "draft_core"
CUT = re.compile(
    r"input was truncated because\s+(?P<by>.+?)\s+(?:can only handle|is set to)\D*(?P<limit>\d+).*?:\s*(?P<cut>.*)",
    re.S,
)
TOKENIZERS_WARNING = "Token indices sequence length is longer than the specified maximum"  # of the same prompts
SPECIAL = re.compile(r"<\|?[\w-]+\|?>|</s>")  # tokens that end and fill up a prompt


class CutPrompts(logging.Filter):
    """Takes diffusers' lines on cut prompts off the log, and gives each to `progress` once, in one sentence.

    Attributes:
        prompts: the texts that may be cut; those that encoders read lower-case or otherwise spaced are known again.
        progress: is given the sentences, as notes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prompts: Sequence[str] = ()
        self.progress: Progress = silent
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is printed."""
        message = record.getMessage()
        if TOKENIZERS_WARNING in message:
            return False
        if (found := CUT.search(message)) is None:
            return True
        for cut in _texts(found["cut"]):
            prompt = next((prompt for prompt in self.prompts if _plain(prompt).endswith(_plain(cut))), None)
            named = f"prompt {short(repr(prompt))}" if prompt else "a prompt"
            if (key := f"{named} {_plain(cut)}") not in self.told:
                self.told.add(key)
                by = found["by"].strip("`")
                self.progress(
                    "note", 0, 0, f"{named} is cut after {found['limit']} tokens ({by}): {short(repr(cut))} is not read"
                )
        return False


class _OwnWarnings(logging.Handler):
    """Gives warnings to the same `progress`; where that says nothing, to the standard error like any program's."""

    def __init__(self, told: CutPrompts) -> None:
        super().__init__(logging.WARNING)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        if self.told.progress is not silent:
            self.told.progress("note", 0, 0, record.getMessage())
        elif logging.lastResort is not None:
            logging.lastResort.handle(record)


@contextmanager
def cut_prompts() -> Iterator[CutPrompts]:
    """A filter of cut prompts that is at work inside; its `progress` is given the warnings of draft-core too."""
    told = CutPrompts()
    own = _OwnWarnings(told)
    logging.getLogger(OWN).addHandler(own)
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(told)
    try:
        yield told
    finally:
        logging.getLogger(OWN).removeHandler(own)
        for handler in handlers:
            handler.removeFilter(told)


def _texts(listed: str) -> list[str]:
    """What was cut off each prompt of a batch, without special tokens; what was not cut leaves nothing."""
    try:
        pieces = ast.literal_eval(listed.strip())
    except (ValueError, SyntaxError):
        pieces = [listed]
    pieces = [pieces] if isinstance(pieces, str) else pieces
    return [text for piece in pieces if (text := SPECIAL.sub("", str(piece)).strip())]


def _plain(text: str) -> str:
    """What of a text is the same before a tokenizer and after it."""
    return "".join(text.lower().split())
