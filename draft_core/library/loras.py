"""A LoRA of one's own training loop as a file, `save_lora`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from draft_core.adapters.lora_adapter import Lora


def save_lora(pipe: Any, folder: str | Path) -> Path:
    """Writes the LoRA of a pipeline as a file that plain diffusers loads, `pipe.load_lora_weights(folder)`; returns it.

    Its scale alpha / rank is in the file. Where diffusers has no loader for the pipeline's LoRAs, or one that does not
    give back what was saved, the file is one for `load_lora`, and a warning says so. A second denoiser's LoRA has a
    file of its own, for `load_lora_weights(folder, weight_name=..., load_into_transformer_2=True)`.

    Arguments:
        pipe: a diffusers pipeline with a LoRA of `add_lora`; what accelerate wrapped is unwrapped first.
        folder: made if it is not there; files of these names in it are replaced.

    Raises:
        DraftError: if the pipeline carries no LoRA of `add_lora`.
    """
    lora = Lora(pipe)
    lora.parameters()  # refuses a pipeline without one
    file = lora.save(Path(folder))
    for note in lora.notes():
        warnings.warn(note, stacklevel=2)
    return file
