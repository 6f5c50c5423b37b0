"""Makes the training programs importable, and keeps torch to one thread as the machine may be shared."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draft_core.testing import one_thread

PLUGINS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PLUGINS / "emoji-video" / "training"), str(PLUGINS / "emoji" / "training")]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
