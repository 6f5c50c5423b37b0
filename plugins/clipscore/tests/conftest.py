"""A tiny CLIP of transformers in a folder; and one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from draft_reward_clipscore.tiny import save_tiny

from draft_core.testing import one_thread


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it, with tokenizer and image processor."""
    path = tmp_path_factory.mktemp("clip")
    save_tiny(path, seed=0)
    return path
