"""The settings of a surrogate, as a recipe says them; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from draft_core.setting import CLOSED, MOST, check_bounds, closed, setting


@closed
@dataclass(frozen=True, kw_only=True)
class SurrogateSettings:
    """A small network that learns a reward's scores on the way and is trained on in its place (LaSRO, 2411.15247)."""

    __pydantic_config__ = CLOSED

    space: Literal["latent", "image"] = setting(
        "What the network sees: the latents that the decoder is given, so that nothing is decoded for the gradient, or "
        "the decoded images, at most 128 pixels on their shorter side.",
        "latent",
    )
    loss: Literal["ranking", "regression"] = setting(
        "What it is fitted by: which of two images has the higher score (Bradley-Terry), or the squared error.",
        "ranking",
    )
    pairs: Literal["auto", "any", "prompt"] = setting(
        "Which images `ranking` compares: any two, or those of one prompt; `auto` takes those of one prompt for a "
        "reward that reads it, else any.",
        "auto",
    )
    warmup: Annotated[int, Ge(16), Le(MOST)] = setting(
        "Images of the untrained model that the reward scores before the first update.", 256
    )
    warmup_fits: Annotated[int, Ge(1), Le(MOST)] = setting("Optimiser steps of the network on those images.", 150)
    refresh: Annotated[int, Ge(0), Le(MOST)] = setting(
        "Updates from one refresh to the next: the reward scores the newest images, and the network is fitted again; 0 "
        "never.",
        1,
    )
    fits: Annotated[int, Ge(1), Le(MOST)] = setting("Optimiser steps of the network in a refresh.", 20)
    buffer: Annotated[int, Ge(16), Le(MOST)] = setting(
        "How many of the last scored images are remembered and fitted to.", 1024
    )
    batch_size: Annotated[int, Ge(2), Le(MOST)] = setting("Images in one of these steps.", 64)
    learning_rate: Annotated[float, Gt(0)] = setting("Of the network's own AdamW.", 1e-3)
    width: Annotated[int, Ge(4), Le(512)] = setting("Channels of the network's first layer.", 32)

    def __post_init__(self) -> None:
        """Raises a `DraftError` if a field is out of its bounds."""
        check_bounds(self)
