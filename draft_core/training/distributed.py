"""What the processes of one run tell each other: few and small things, through accelerate.

Every process calls the same exchanges in the same order.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, reduce

from draft_core.errors import DraftError

T = TypeVar("T")


class Processes:
    """The processes of a run, of which this is one; a single process gets its own values back.

    Arguments:
        cpu: whether they compute on the CPU although there are GPUs.

    Attributes:
        rank: which one this is, from 0; 0 is the main process, which writes and reports.
        world_size: how many there are.
        device: where this one computes; of several processes each has its own GPU.

    Raises:
        DraftError: if it is alone although it was to be one of several.
    """

    def __init__(self, *, cpu: bool) -> None:
        state = PartialState(cpu=cpu or _meet_on_cpu())  # it knows whether this process was started as one of several
        self.world_size: int = state.num_processes
        self.rank: int = state.process_index
        # Several stay connected on the devices that they have; one alone is asked anew by each run of its program.
        alone = torch.device("cpu") if cpu else state.default_device
        self.device: torch.device = state.device if self.world_size > 1 else alone
        _require_company(self.world_size)

    def leave_at_exit(self) -> None:
        """Leaves the process group when the program ends, not when a run does: the program may make another."""
        if self.world_size > 1:
            atexit.register(PartialState().destroy_process_group)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        with self._connected():
            return cast("list[T]", gather_object([value]))

    def of_machine(self) -> int:
        """How many of them each machine has.

        Raises:
            DraftError: if machines have different numbers.
        """
        found = self.gather(int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))
        if len({*found}) > 1 or self.world_size % found[0]:
            raise DraftError(
                f"machines have different numbers of processes, such as {min(found)} and {max(found)}",
                where="train.sharding",
                next="start as many on each, or use full",
            )
        return found[0]

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over processes of tensors of one shape."""
        if self.world_size == 1:
            return tensor
        with self._connected():
            return cast(torch.Tensor, reduce(tensor, reduction="mean"))

    def begin_equal(self, tensors: Iterable[torch.Tensor], modules: Iterable[torch.nn.Module]) -> None:
        """Gives tensors and the weights of modules, in place, the values that they have in the main process."""
        if self.world_size == 1:
            return
        with self._connected():
            held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
            for tensor in (*tensors, *held):
                broadcast(tensor.data)

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, which alone does it, in every process.

        What the work fails with, a `DraftError` or an `OSError`, it fails with in every process.
        """
        if self.world_size == 1:
            return work()
        result: list[Any] = [None, None]
        if self.rank == 0:
            try:
                result[0] = work()
            except (DraftError, OSError) as error:
                result[1] = error
        with self._connected():
            broadcast_object_list(result)
        if result[1] is not None:
            if isinstance(result[1], DraftError):
                result[1].is_reported = self.rank > 0
            raise result[1]
        return cast(T, result[0])

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that the backends of torch.distributed raise
            raise another_is_gone(self.rank) from error


def another_is_gone(rank: int) -> DraftError:
    """What the process of that rank says when it can no longer reach another."""
    return DraftError(
        "another process of the run is gone",
        where=f"process {rank}",
        next="see what ended it; what was saved is whole, and the same command goes on from there",
    )


def is_loss_of_another(error: MemoryError | RuntimeError) -> bool:
    """Whether an error of a computation is one of its exchanges with another process, as in a sharded denoiser."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo has no class for its errors
    return isinstance(error, torch.distributed.DistBackendError) or any(word in str(error) for word in words)


def _meet_on_cpu() -> bool:
    """Whether this is one of several processes on a machine without a GPU: accelerate must be told to use the CPU."""
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


def _require_company(count: int) -> None:
    """A process that is alone among several would make the whole run by itself, beside the others.

    `accelerate launch --cpu` starts a single one, however many it is asked for, and says nothing.
    """
    if count == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DraftError(
            f"{os.environ['WORLD_SIZE']} processes were asked for, and this one cannot meet the others on its device",
            where=f"process {os.environ.get('RANK', '0')}",
            next="set `device: cpu` in the recipe, or use one process",
        )
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and "MASTER_ADDR" in os.environ
    if asked and count == 1:
        raise DraftError(
            "several processes were asked for and one was started: on the CPU accelerate leaves that to MPI",
            where="accelerate launch --cpu",
            next="use `draft train --processes`, torchrun, or --multi_gpu with `device: cpu` in the recipe",
        )
