"""That a pipeline's decoder, or the one in its place, can decode as a sampler is asked to."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderTiny

from draft_core.errors import SamplerError
from draft_core.sampling.decoders.tiles import check_tiles
from draft_core.sampling.decoders.tiny import check_tiny_decoder


def check_decoder(pipe: Any, decode: str, decoder: AutoencoderTiny | None) -> None:
    """That it can.

    Raises:
        SamplerError: if not.
    """
    if decoder is not None:
        check_tiny_decoder(pipe, decoder)
    if decode != "tiles":
        return
    if decoder is not None:
        raise SamplerError(
            'decode="tiles" is of the pipeline\'s own decoder, and a small one decodes in its place',
            where=type(pipe).__name__,
            next="leave one of them out",
        )
    check_tiles(getattr(pipe, "vae", None))
