"""How a process computes, as a message says it: threads, autocast, and how exactly matrices are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch


def settings_of(device: torch.device) -> dict[str, Any]:
    """Those of this process now, for what it computes on the device."""
    kind = device.type
    return {
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32],
        "autocast": [
            kind,
            str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if torch.is_autocast_enabled(kind) else None,
        ],
    }


def adopt(settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Takes over the settings of the other process; the autocast is a context to compute in."""
    if settings["threads"] != torch.get_num_threads():
        torch.set_num_threads(settings["threads"])
    if settings["float32_matmul"] != torch.get_float32_matmul_precision():
        torch.set_float32_matmul_precision(settings["float32_matmul"])
    if settings["deterministic"] != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(settings["deterministic"])
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = settings["cudnn"]
    kind, dtype = settings["autocast"]
    return torch.autocast(kind, dtype=getattr(torch, dtype) if dtype else None, enabled=dtype is not None)
