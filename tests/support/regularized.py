"""What tests of regularizers train: a model away from its base model, on how red its images are."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from draft_core import DifferentiableSampler
from draft_core.adapters.lora import adapters_off
from tests.support.tiny import tiny_pipe, with_lora


def redness(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


def sampler_away(tokenizer: Any, **call: Any) -> DifferentiableSampler:
    """Of two guided steps of the tiny pipeline, whose LoRA is not that of a fresh one."""
    pipe = with_lora(tiny_pipe(tokenizer=tokenizer), rank=2)
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "lora" in name:
                parameter += 0.02
    return DifferentiableSampler(
        pipe, num_inference_steps=2, guidance_scale=3.0, base_model=partial(adapters_off, pipe), **call
    )
