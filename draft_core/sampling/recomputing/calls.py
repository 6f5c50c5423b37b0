"""A recorded call of a network, its graph kept as a sampler's settings say."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from draft_core.sampling.recomputing.selective import convolutions_small, kept_small
from draft_core.sampling.recomputing.slices import recomputed_in_slices
from draft_core.setting import IN_PARTS


def keeping(how: Any, network: Any) -> AbstractContextManager[Any]:
    """What is recorded inside keeps as much as is asked for."""
    if how == "blocks" and torch.is_grad_enabled() and not network.is_gradient_checkpointing:
        # It stays on, for the backward pass may ask again; without recording it does nothing.
        network.enable_gradient_checkpointing()
    return kept_small() if how == "selective" else nullcontext()


def recorded(how: Any, network: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of the denoiser's function, its graph kept as `how`, a sampler's `gradient_checkpointing`, says."""
    if how in IN_PARTS and torch.is_grad_enabled():
        return recomputed_in_slices(IN_PARTS[how], network, function, *args, **kwargs)
    return recomputed(network, function, *args, **kwargs) if how is True else function(*args, **kwargs)


def recomputed(network: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of the network's function, its intermediate results computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)

    def smaller(*args: Any, **kwargs: Any) -> Any:  # what the backward pass computes again takes less memory too
        with convolutions_small(network):
            return function(*args, **kwargs)

    return checkpoint(smaller, *args, use_reentrant=False, **kwargs)
