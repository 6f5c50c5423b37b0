"""What is found to be missing in a plugin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is missing.

    Arguments:
        what: is missing or wrong.
        next: what to do.
        required: whether it should not be published so; what is only advised may have reasons.
    """

    what: str
    next: str
    required: bool = True
