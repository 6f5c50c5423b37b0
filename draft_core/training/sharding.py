"""A frozen denoiser spread over processes, so that each holds its part, by FSDP2 (torch's `fully_shard`).

The LoRA is not sharded: it is small, it is float32 over a base of another precision, and its gradient is averaged
like without sharding.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from draft_core.errors import RecipeError
from draft_core.sampling.pipelines import find_denoisers
from draft_core.setting import IN_PARTS

WHERE = "train.sharding"


def shard_denoisers(pipe: Any, device: torch.device, processes: int, *, of_machine: int | None = None) -> None:
    """Spreads the frozen parameters of each denoiser over all processes, or over those of each machine, block by block.

    A block is whole on the device only while it computes, forward or backward. Every process must call the denoiser
    equally often.

    Arguments:
        pipe: its denoisers are not yet on a GPU; each block goes there as it is sharded.
        of_machine: how many processes each machine has, for which the parameters are then the same on every machine
            (hybrid sharding); None shares them out over all.

    Raises:
        RecipeError: if there is one process, or this torch or device cannot do it.
    """
    from torch.distributed import fsdp

    require_several(processes)
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"FSDP2 is not made for {device.type}", where=WHERE, next="use cpu or cuda")
    if "ignored_params" not in inspect.signature(fsdp.fully_shard).parameters:
        raise RecipeError(
            f"FSDP2 of torch {torch.__version__} cannot leave out the LoRA",
            where=WHERE,
            next="install torch 2.8 or newer",
        )
    if of_machine == 1:
        raise RecipeError(
            "each machine has one process, so nothing to share out there",
            where=WHERE,
            next="use full, which shares out over machines, or start more on each",
        )
    share = of_machine or processes
    # Ranks of one machine follow one another: a row of the mesh each.
    shape, names = (
        ((processes,), ("shard",)) if share == processes else ((processes // share, share), ("replicate", "shard"))
    )
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    for denoiser in find_denoisers(pipe).values():
        whole = {parameter for parameter in denoiser.parameters() if parameter.requires_grad}
        for block in blocks(denoiser):
            fsdp.fully_shard(block, mesh=mesh, ignored_params=whole)
        fsdp.fully_shard(denoiser, mesh=mesh, ignored_params=whole)


def require_several(processes: int) -> None:
    """That there are several processes.

    Raises:
        RecipeError: if not.
    """
    if processes == 1:
        raise RecipeError("there is one process, so nothing to share out", where=WHERE, next="give --processes 2")


def check_recomputed(how: Any) -> None:
    """That a sharded denoiser's calls can be computed again as `how`, a sampler's `gradient_checkpointing`, says.

    Raises:
        RecipeError: if it is one of `IN_PARTS`, whose backward pass calls the denoiser by itself.
    """
    if how in IN_PARTS:
        raise RecipeError(
            f"a denoiser that is spread over processes is not computed again as {how!r} does it",
            where=WHERE,
            next="use gradient_checkpointing: true, or blocks",
        )


def blocks(denoiser: torch.nn.Module) -> list[torch.nn.Module]:
    """What is gathered and left again as one piece: the outermost modules of the classes that must not be split.

    Every diffusers model names those; where one names none, the items of its module lists.
    """
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    lists = [child for child in denoiser.modules() if isinstance(child, torch.nn.ModuleList)]
    found = [module for module in denoiser.modules() if type(module).__name__ in names]
    candidates = found or [item for items in lists for item in items if any(True for _ in item.parameters())]
    inside = {id(child) for module in candidates for child in module.modules() if child is not module}
    return [module for module in candidates if id(module) not in inside]


def held(in_blocks: int, largest: int, outside: int, processes: int) -> int:
    """Bytes of a frozen denoiser in one of the processes that hold it in common, at the time when they are most.

    A part of every block; two whole ones, as the next is gathered while one computes; and what is in no block, which
    stays gathered through an update.

    Arguments:
        in_blocks: bytes of all its blocks.
        largest: of the largest one.
        outside: of what is in none.
        processes: that share it out: those of one machine where sharding is hybrid.
    """
    return round(in_blocks / processes) + 2 * largest + outside
