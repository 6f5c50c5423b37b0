"""Prompts encoded once: text encoders that remember, row by row, what they returned.

Between updates the encoders are then idle, and on a GPU they leave it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from draft_core.sampling import pipelines, seams

# What an encoder is told beside its tensors, when it can be part of a key.
PLAIN = (bool, int, float, str, torch.dtype, type(None))


def remember_prompts(pipe: Any) -> dict[str, PromptEmbeddingCache]:
    """Gives each text encoder of the pipeline a memory, for good; component name -> its memory."""
    return {
        name: PromptEmbeddingCache(encoder, pipe)
        for name, encoder in pipelines.modules_named(pipe, "text_encoder").items()
    }


class PromptEmbeddingCache:
    """Replaces the `forward` of one text encoder: each row of its input is encoded once, alone, and remembered.

    A prompt's embedding is the one it has in a batch of its own, so that it does not depend on its batch mates. What
    is remembered lies on `home`, and where the input is elsewhere the encoder goes there only for unknown rows, unless
    the pipeline would then lose sight of the device that it runs on. What the encoder returns with a LoRA scaled,
    switched off or given other weights is remembered by itself. A call that cannot be told apart by rows
    (images among its tensors, say) goes to the encoder as it is.

    Arguments:
        encoder: any text encoder of transformers, frozen: tensors of leading dimension B in, a tuple or an output
            object of tensors of leading dimension B out.
        pipe: the pipeline that it belongs to.
        home: where the encoder and its memory stay.
    """

    def __init__(self, encoder: torch.nn.Module, pipe: Any, home: torch.device | str = "cpu") -> None:
        self.encoder = encoder
        self.pipe = pipe
        self.home = torch.device(home)
        self.leaves = True  # until the pipeline is seen to need the encoder to know its device
        self.rows: dict[Any, Any] = {}  # what a row is told apart by -> the output for it alone
        self.forward = encoder.forward
        functools.update_wrapper(self, self.forward)  # with its signature, which pipelines look at
        encoder.forward = self

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder returns for these arguments."""
        tensors = seams.tensors_in((args, kwargs))
        if not _has_rows(tensors, args, kwargs):
            return self._encode(tensors, args, kwargs)
        told = [(name, value) for name, value in _named(args, kwargs) if not isinstance(value, torch.Tensor)]
        told.append(("adapter", _adapter_state(self.encoder)))
        keys = [(repr(told), *(_bytes(tensor[row]) for tensor in tensors)) for row in range(len(tensors[0]))]
        unknown = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self.rows}
        for key, row in unknown.items():
            one_args, one_kwargs = seams.mapped(itemgetter(slice(row, row + 1)), (args, kwargs))
            output = _without_caches(self._encode(tensors, one_args, one_kwargs))
            if any(tensor.ndim == 0 or len(tensor) != 1 for tensor in seams.tensors_in(output)):
                return self._encode(tensors, args, kwargs)
            self.rows[key] = seams.mapped(lambda tensor: tensor.detach().to(self.home), output)
        self._leave(tensors)
        return _joined([self.rows[key] for key in keys], tensors[0].device)

    def _encode(self, tensors: Sequence[torch.Tensor], args: Any, kwargs: Any) -> Any:
        if tensors and tensors[0].device != self.home:
            self.encoder.to(tensors[0].device)
        return self.forward(*args, **kwargs)

    def _leave(self, tensors: Sequence[torch.Tensor]) -> None:
        """The encoder goes home, if the pipeline knows its device without it."""
        device = tensors[0].device
        if device == self.home or not self.leaves:
            return
        self.encoder.to(self.home)
        self.leaves = torch.device(self.pipe._execution_device).type == device.type
        if not self.leaves:
            self.encoder.to(device)


def _adapter_state(encoder: torch.nn.Module) -> list[Any]:
    """What tells apart the states of the LoRA layers in an encoder; empty where there are none.

    Beside peft's switches and scales it has identity and version of each weight, which change when it is replaced or
    written into.
    """
    return [
        (
            name,
            layer.disable_adapters,
            tuple(layer.active_adapters),
            tuple(layer.merged_adapters),
            sorted(layer.scaling.items()),
            [(id(weight), weight._version) for weight in layer.parameters()],
        )
        for name, layer in encoder.named_modules()
        if isinstance(layer, LoraLayer)
    ]


def _has_rows(tensors: Sequence[torch.Tensor], args: Any, kwargs: Any) -> bool:
    """Whether the arguments are tensors of one leading dimension, and plain values."""
    others = [value for _, value in _named(args, kwargs) if not isinstance(value, torch.Tensor)]
    return (
        bool(tensors)
        and all(tensor.ndim > 0 and len(tensor) == len(tensors[0]) for tensor in tensors)
        and all(isinstance(value, PLAIN) for value in others)
    )


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*((str(place), value) for place, value in enumerate(args)), *kwargs.items()]


def _bytes(row: torch.Tensor) -> tuple[Any, ...]:
    return row.dtype, row.shape, row.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()


def _without_caches(output: Any) -> Any:
    """The output without what is neither a tensor nor made of tensors: keys and values for generation, say."""
    if not isinstance(output, Mapping):
        return output
    kept = {name: value for name, value in output.items() if isinstance(value, (torch.Tensor, tuple, list))}
    return type(output)(**kept)


def _joined(rows: Sequence[Any], device: torch.device) -> Any:
    """The outputs of single rows as one batch."""
    columns = zip(*(seams.tensors_in(row) for row in rows), strict=True)
    batch = iter([torch.cat(column).to(device) for column in columns])
    return seams.mapped(lambda _: next(batch), rows[0])
