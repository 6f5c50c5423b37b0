"""The settings of a training, with their bounds and what they mean; recipes and the trainer share them.

Plain dataclasses: pydantic validates and describes them in a recipe, and nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

MOST = 100_000  # images of one pass, or passes of one update
LARGEST_SEED = 2**62  # what is added to it still fits torch's generators

Beta = Annotated[float, Ge(0), Lt(1)]

_CLOSED = {"extra": "forbid", "allow_inf_nan": False}


def _said(description: str, default: Any) -> Any:
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation: AdamW (Loshchilov and Hutter 2019) on the adapter."""

    __pydantic_config__ = _CLOSED

    steps: Annotated[int, Ge(1)] = _said("Number of updates.", 100)
    batch_size: Annotated[int, Ge(1), Le(MOST)] = _said("Prompts in one pass, one image each.", 8)
    gradient_accumulation_steps: Annotated[int, Ge(1), Le(MOST)] = _said("Passes in one update.", 1)
    learning_rate: Annotated[float, Gt(0)] = _said("Rate after the warm-up.", 4e-4)
    warmup_steps: Annotated[int, Ge(0)] = _said("Updates over which the rate rises linearly.", 0)
    betas: tuple[Beta, Beta] = _said("AdamW's averaging factors.", (0.9, 0.999))
    weight_decay: Annotated[float, Ge(0)] = _said("AdamW's decoupled decay.", 0.1)
    max_grad_norm: Annotated[float, Gt(0)] = _said("Gradients with a larger L2 norm are scaled down to it.", 1.0)
    mixed_precision: Literal["no", "fp16", "bf16"] = _said("Autocast around sampling and scoring.", "no")
    sharding: Literal["none", "full"] = _said(
        "With `full` each of several processes holds a part of the frozen denoiser (FSDP2), gathered block "
        "by block while it computes: less memory, more traffic. The LoRA stays whole.",
        "none",
    )
    seed: Annotated[int, Ge(0), Le(LARGEST_SEED)] = _said("Of prompts, noise and plans.", 0)
    normalize: Literal["none", "scale", "gradient"] = _said(
        "What each reward is divided by before its weight: nothing, the running spread of its scores, or "
        "the running norm of its gradient in the image, so that rewards of different units can be weighed.",
        "none",
    )
    max_skipped: Annotated[int, Ge(0)] = _said(
        "So many optimiser steps may be skipped for numbers that are not finite; one more ends the run.", 10
    )


@dataclass(frozen=True, kw_only=True)
class RegularizerSettings:
    """What holds the tuned model near the base model; each is a weight, and 0 leaves the term out."""

    __pydantic_config__ = _CLOSED

    # The KL of two Gaussians of equal variance is their squared distance (DRaFT+, NVIDIA NeMo).
    kl: Annotated[float, Ge(0)] = _said(
        "Mean squared difference between tuned and base denoiser along the grad steps (DRaFT+). Costs "
        "one more denoiser call for each recorded one, and no memory for a second model.",
        0.0,
    )
    lora_norm: Annotated[float, Ge(0)] = _said("Squared Frobenius norm of what the LoRA adds to the weights.", 0.0)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """How often a run saves itself."""

    __pydantic_config__ = _CLOSED

    every: Annotated[int, Ge(1)] = _said("Updates between checkpoints; the last update is always saved.", 50)
    keep: Annotated[int, Ge(1)] = _said("How many checkpoints stay on disk.", 2)
