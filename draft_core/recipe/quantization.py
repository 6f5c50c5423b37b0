"""Which networks of a pipeline `model.quantization` names; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from draft_core.errors import RecipeError

WHERE = "model.quantization"
ABLE = ("unet", "transformer", "text_encoder")  # parts of the names of networks that may be quantised
DENOISERS = ABLE[:2]


def quantized_networks(quantization: str | Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Component -> its kind, for the networks that are quantised.

    Arguments:
        quantization: as in a recipe's model.
        names: of the pipeline's components.

    Raises:
        RecipeError: if there is no such network, or it is none that can be quantised here.
    """
    names = [*names]
    if isinstance(quantization, str):
        return {name: quantization for name in names if any(part in name for part in DENOISERS)}
    able = [name for name in names if any(part in name for part in ABLE)]
    for name in quantization:
        if name not in able:
            what = "is neither a denoiser nor a text encoder" if name in names else "is no network of this model"
            known = f"it has {', '.join(able)}" if able else "name one such as transformer or text_encoder"
            raise RecipeError(f"{name} {what}", where=WHERE, next=known)
    return dict(quantization)
