"""What every test of this plugin shares: one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from draft_core.testing import one_thread


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
