"""How much memory a piece of work takes at its peak, counted in every byte that tensors allocate.

A measure to predict runs and to hold the sampler to its bounds, never part of one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from draft_core.errors import DraftError


def peak_memory(work: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """The largest number of bytes that `work()` had allocated at one time, beyond what was there before it.

    On the CPU the storages of all tensors are counted, exactly and the same in every run; scratch space inside one
    kernel and Python's own objects are not seen. So it is on the meta device, whose tensors have a size and take no
    memory: what a model would need that does not fit here. On CUDA it is what the caching allocator handed out.

    Raises:
        DraftError: on another kind of device, where the backward pass cannot be watched.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    if device.type not in ("cpu", "meta"):
        raise DraftError(f"memory cannot be measured on {device.type}", where="device", next="use cpu or cuda")
    with MemoryMeter() as meter:
        work()
    return int(meter.peak)


class MemoryMeter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations inside make, as long as anything keeps them alive.

    Attributes:
        live: bytes allocated inside and alive now.
        peak: the largest `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.known: dict[int, weakref.ref[Any]] = {}  # address of a storage -> it, those from before included

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and takes down which storages are new."""
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a tensor made of others runs operations on those, and they come by here
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):
            self._take_down(storage, 0)  # made before, so not ours: an output may be a view of it
        output = func(*args, **kwargs)
        for storage in _storages(output):
            self._take_down(storage, storage.nbytes())
        return output

    def _take_down(self, storage: torch.UntypedStorage, count: int) -> None:
        address = storage._cdata
        if address in self.known:
            return

        def freed(_: Any) -> None:
            del self.known[address]
            self.live -= count

        self.known[address] = weakref.ref(storage, freed)
        self.live += count
        self.peak = max(self.peak, self.live)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes, those of quantised weights too, with their scales."""
    if hasattr(tensor, "__tensor_flatten__"):  # made of others, as torchao's are
        names, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in names)
    state = getattr(tensor, "quant_state", None)  # what bitsandbytes keeps beside a weight
    of_state = [] if state is None else state.as_dict(packed=False).values()
    beside = sum(stored_bytes(value) for value in of_state if isinstance(value, torch.Tensor))
    return int(tensor.nbytes) + beside


def _storages(value: Any) -> list[torch.UntypedStorage]:
    """Those of the tensors among the arguments or outputs of an operation."""
    return [leaf.untyped_storage() for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
