"""A pipeline's call that is left where it would decode: what its decoder is given, and no image."""

from __future__ import annotations

from typing import Any

import torch


class DecoderReachedError(BaseException):
    """Leaves the pipeline's call before its decoder; no pipeline catches it.

    Arguments:
        latents: that the decoder is given.
    """

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents


def leave(decode: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """In the place of `vae.decode`.

    Raises:
        DecoderReachedError: always.
    """
    raise DecoderReachedError(latents)
