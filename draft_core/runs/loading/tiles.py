"""What the files of a model say of the tiles that its decoder is to work in, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from accelerate import init_empty_weights

from draft_core.runs.loading.classes import index_in
from draft_core.sampling.decoders.tiles import tile


def check_tile_sizes(sizes: bool | Mapping[str, int], location: str) -> None:
    """That the decoder in the folder of a classic pipeline can work in such tiles; of other models nothing is known.

    Arguments:
        sizes: `model.tiled_decode` of a recipe.
        location: folder, file or hub name of the model.

    Raises:
        RecipeError: as `tile_decode`.
    """
    index = index_in(location) if sizes else None
    if index is not None and (decoder := _decoder_in(location, index.get("vae"))) is not None:
        tile(decoder, sizes, of=str(index.get("_class_name")))


def _decoder_in(folder: str, part: Any) -> Any:
    """The decoder that an index names, its weights without numbers; None where it is none of diffusers."""
    match part:
        case ["diffusers", str(name)] if isinstance(cls := getattr(diffusers, name, None), type):
            try:
                with init_empty_weights():
                    return cls.from_config(cls.load_config(folder, subfolder="vae"))  # type: ignore[attr-defined]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the loader says what is wrong with it
                return None
    return None
