"""Tensors in shared memory, and what is said of them in a message: where they lie, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from draft_core.workers.memory import SharedMemory

ALIGNED = 64  # bytes, as torch places its own tensors


def put(memory: SharedMemory, tensors: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """Copies tensors into the memory, one behind the other, from its start; what lay there is gone.

    Strides are kept: in another order of its dimensions a tensor may meet another kernel, and round otherwise.

    Returns:
        For each what `take` reads: dtype, shape, strides, offset.
    """
    placed, size = [], 0
    for tensor in tensors:
        dense = torch.empty_like(tensor, device="cpu", memory_format=torch.preserve_format)
        dense.copy_(tensor.detach())
        placed.append((dense, size))
        size += -(-dense.numel() * dense.element_size() // ALIGNED) * ALIGNED
    buffer = memory.bytes(size)
    told = []
    for dense, offset in placed:
        if dense.numel():
            _flat(buffer, dense.dtype, dense.numel(), offset).copy_(dense.as_strided((dense.numel(),), (1,)))
        kind = str(dense.dtype).removeprefix("torch.")
        told.append({"dtype": kind, "shape": [*dense.shape], "stride": [*dense.stride()], "offset": offset})
    return told


def take(memory: SharedMemory, told: Mapping[str, Any], device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor out of the memory, a copy of its own on that device.

    Arguments:
        told: one item of what `put` gave.
    """
    dtype: torch.dtype = getattr(torch, told["dtype"])
    tensor = torch.empty_strided(told["shape"], told["stride"], dtype=dtype)
    if count := tensor.numel():
        end = told["offset"] + count * tensor.element_size()
        tensor.as_strided((count,), (1,)).copy_(_flat(memory.bytes(end), dtype, count, told["offset"]))
    return tensor.to(device)


def _flat(buffer: Any, dtype: torch.dtype, count: int, offset: int) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)
