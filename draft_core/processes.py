"""What the processes of one run tell each other: few and small things, through accelerate.

Every process calls the same exchanges in the same order. Tensors wing. May import: errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

from draft_core.errors import DraftError

T = TypeVar("T")


class Processes:
    """The processes of a run, of which this is one; where it is alone, it talks to itself.

    Arguments:
        cpu: whether they compute on the CPU although there are GPUs.

    Attributes:
        count: how many there are.
        place: which one this is, from 0; 0 is the main process, which writes and speaks.
    """

    def __init__(self, *, cpu: bool) -> None:
        state = PartialState(cpu=cpu)  # it knows whether this process was started as one of several
        self.count: int = state.num_processes
        self.place: int = state.process_index

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by place."""
        if self.count == 1:
            return [value]
        with self._connected():
            return cast("list[T]", gather_object([value]))

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over processes of tensors of one shape."""
        if self.count == 1:
            return tensor
        with self._connected():
            return cast(torch.Tensor, reduce(tensor, reduction="mean"))

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, which alone does it, in every process.

        What the work fails with, a `DraftError` or an `OSError`, it fails with in every process.
        """
        if self.count == 1:
            return work()
        result: list[Any] = [None, None]
        if self.place == 0:
            try:
                result[0] = work()
            except (DraftError, OSError) as error:
                result[1] = error
        with self._connected():
            broadcast_object_list(result)
        if result[1] is not None:
            if isinstance(result[1], DraftError):
                result[1].told = self.place > 0
            raise result[1]
        return cast(T, result[0])

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that the backends of torch.distributed raise
            raise DraftError(
                "another process of the run is gone",
                where=f"process {self.place}",
                next="see what ended it; what was saved is whole, and the same command goes on from there",
            ) from error
