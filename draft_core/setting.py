"""What settings classes share: how a field is described, the bounds of several, and that unknown fields are refused."""

from __future__ import annotations

from dataclasses import field
from typing import Any

MOST = 100_000  # images of one pass or prompt, passes of one update, ranks of a LoRA
LARGEST_SEED = 2**62  # what is added to it still fits torch's generators

CLOSED = {"extra": "forbid", "allow_inf_nan": False}  # how pydantic validates a settings class


def setting(description: str, default: Any) -> Any:
    """A dataclass field with its default and the text that the recipe's schema shows."""
    return field(default=default, metadata={"description": description})
