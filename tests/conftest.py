"""What every test shares: one thread, no network, and the tiny catalog."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest
import torch

from draft_core.registry.catalog import Catalog
from tests.support.tiny import tiny_catalog

# On a machine shared with others, two threads on small tensors can be many times slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The tiny catalog; its files are made once and only read."""
    return tiny_catalog(tmp_path_factory.mktemp("tiny"))
