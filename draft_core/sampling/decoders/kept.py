"""How a decoder is called: with what its backward pass keeps, and as it is where its pipeline casts it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from draft_core.errors import SamplerError
from draft_core.sampling import seams
from draft_core.sampling.recomputing.calls import keeping, recomputed


def decoded(how: Any, network: Any, decode: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
    """The output of a network's `decode`, its graph kept as `how`, a sampler's `decode`, says."""
    if how == "unrecorded":
        with torch.no_grad():
            return decode(latents, *args, **kwargs)
    if how in ("whole", "selective", "blocks") or not isinstance(latents, torch.Tensor):
        with keeping(how, network):
            return decode(latents, *args, **kwargs)
    slices = torch.split(latents, 1) if how == "sliced" else [latents]
    outputs = [recomputed(network, decode, piece, *args, **kwargs) for piece in slices]
    images = torch.cat([seams.first_of(output, "sample") for output in outputs])
    return seams.with_first(outputs[0], "sample", images)


def types_of(network: Any) -> list[torch.dtype]:
    """The types of a network's weights; none of what is no network."""
    return [weight.dtype for weight in network.parameters()] if isinstance(network, torch.nn.Module) else []


def kept_as_it_is(network: torch.nn.Module) -> Any:
    """A copy of a network that shares its weights' memory, and keeps them when the network is cast to another type.

    Some pipelines cast their decoder up before they decode, and down again before there is a backward pass.

    Raises:
        SamplerError: if it is trained, for its gradient would not come back through the cast.
    """
    if any(weight.requires_grad for weight in network.parameters()):
        raise SamplerError(
            "its call casts the decoder to another type while it decodes, and the decoder is to be trained",
            where=type(network).__name__,
            next="give it that type beforehand, or freeze it",
        )
    shared = {id(weight): torch.nn.Parameter(weight.data, requires_grad=False) for weight in network.parameters()}
    return copy.deepcopy(network, shared)
