"""What a surrogate sees of a prompt: one vector by the pipeline's own text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from draft_core.prompt_rows import plain
from draft_core.rewards.inputs import TextFeatureCache

# What the `encode_prompt` of a pipeline is given, as far as it takes it.
HOW = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}


class PromptFeatures:
    """Prompts -> the mean over tokens of what the pipeline's `encode_prompt` gives, where that is one tensor.

    Pipelines with several text encoders give several tensors, of different meaning; there a prompt has no features.

    Arguments:
        pipe: a diffusers pipeline.

    Attributes:
        missing: why prompts have no features; None where they have.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.cache = TextFeatureCache()
        self.missing: str | None = None
        self.encode: Any = getattr(pipe, "encode_prompt", None)
        taken = inspect.signature(self.encode).parameters if callable(self.encode) else {}
        given = {**HOW, "prompt": "", "device": None}
        required = [
            name for name, it in taken.items() if it.default is it.empty and it.kind is it.POSITIONAL_OR_KEYWORD
        ]
        if "prompt" not in taken or getattr(pipe, "text_encoder", None) is None:
            self.missing = f"{type(pipe).__name__} encodes no prompt by itself"
        elif unknown := [name for name in required if name not in given]:
            self.missing = f"the encode_prompt of {type(pipe).__name__} also asks for {unknown[0]}"
        else:
            self.how = {name: value for name, value in HOW.items() if name in taken}
            self.takes_device = "device" in taken
            tensors = self._encoded("a")
            if len(tensors) != 1 or tensors[0].ndim != 3 or len(tensors[0]) != 1:
                self.missing = f"the encode_prompt of {type(pipe).__name__} does not give one tensor (1, tokens, D)"

    def __call__(self, prompts: Sequence[str]) -> torch.Tensor | None:
        """Features (N, D), float32, of N prompts, on the CPU; None where they have none."""
        if self.missing:
            return None
        return self.cache(
            plain(prompts), lambda prompt: self._encoded(prompt)[0][0].float().mean(0).cpu(), torch.device("cpu")
        )

    def _encoded(self, prompt: str) -> list[torch.Tensor]:
        device = self.pipe.text_encoder.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            output = self.encode(prompt=prompt, **self.how, **({"device": device} if self.takes_device else {}))
        parts = output if isinstance(output, (tuple, list)) else (output,)
        return [part for part in parts if isinstance(part, torch.Tensor)]
