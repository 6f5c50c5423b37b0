"""Latents of a search in a file, with the prompts and seeds that belong to them, so that its images are drawn again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from draft_core.errors import DraftError, first_line

KEY = "draft_core.search"  # in the metadata of the file


@dataclass(frozen=True)
class SavedLatents:
    """What a file of latents holds.

    Arguments:
        latents: (P, S, ...), as the pipeline's call takes them.
        prompts: P prompts.
        seed: the first of S seeds in a row.
        drawn: how they are to be drawn: model, LoRA, scale, steps and guidance, None for what was left to the model.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    seed: int
    drawn: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes the file, in the format safetensors."""
        about = {"prompts": self.prompts, "seed": self.seed, "drawn": self.drawn}
        save_file({"latents": self.latents.contiguous()}, path, {KEY: json.dumps(about)})


def read_latents(path: Path) -> SavedLatents:
    """What `SavedLatents.save` wrote.

    Raises:
        DraftError: if there is no such file, or it is of another kind.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            about = json.loads((opened.metadata() or {})[KEY])
            latents = opened.get_tensor("latents")
        prompts = tuple(map(str, about["prompts"]))
        saved = SavedLatents(latents, prompts, int(about["seed"]), dict(about["drawn"]))
    except FileNotFoundError:
        raise DraftError("no such file", where=str(path), next="check the path") from None
    except (SafetensorError, OSError) as error:
        raise DraftError(f"it is not a safetensors file ({first_line(error)})", where=str(path)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DraftError(
            "it holds no latents of a search", where=str(path), next="give what `draft sample --optimise-noise` wrote"
        ) from error
    if latents.ndim < 3 or len(latents) != len(prompts) or not latents.is_floating_point():
        raise DraftError(
            f"it holds latents of shape {tuple(latents.shape)} for {len(prompts)} prompts",
            where=str(path),
            next="give the file as `draft sample --optimise-noise` wrote it",
        )
    return saved
