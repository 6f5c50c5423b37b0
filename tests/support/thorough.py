"""Checks that are repeated on many cases: on a few of them, and with DRAFT_THOROUGH=1, as in the workflows, on all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import pytest

T = TypeVar("T")

THOROUGH = bool(os.environ.get("DRAFT_THOROUGH"))

in_full = pytest.mark.skipif(not THOROUGH, reason="it takes minutes: DRAFT_THOROUGH=1 runs it")


def some(cases: Mapping[str, T], *names: str) -> dict[str, T]:
    """The cases of these names; all of them where thoroughness is asked for.

    Raises:
        KeyError: if there is no such case.
    """
    chosen = {name: cases[name] for name in names}
    return dict(cases) if THOROUGH else chosen
