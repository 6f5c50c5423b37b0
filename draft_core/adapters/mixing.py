"""LoRA files by themselves, without the model they belong to: mixed, and written for other programs.

Mixing needs no training (Clark et al. 2024, arXiv 2309.17400, on mixing LoRAs of several rewards): what a LoRA adds
to a weight is scale * B A, and a weighted sum of such products is again one, of all ranks together:
sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...].
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from draft_core.adapters.files import CONFIG_KEY, lora_files, run_around
from draft_core.adapters.fitting import CLIP_PREFIX, DOWN, UP
from draft_core.errors import CheckpointError, DraftError, one_line, require_finite, require_from_one

DIFFUSERS_KEY = "lora_adapter_metadata"  # where diffusers keeps peft's settings, behind the component's name
FORMATS = ("diffusers", "comfyui")
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as its file holds it.

    Arguments:
        path: of the file.
        factors: layer, behind the component's name -> A (r, in, ...) and B (out, r, ...), the scale folded into B.
        config: peft's settings where the pipeline has no loader of its own, else nothing.
    """

    path: Path
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    config: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.Size]]:
        """What of each layer does not depend on the rank."""
        return {name: (down.shape[1:], up.shape[:1]) for name, (down, up) in self.factors.items()}


def read_lora(path: Path) -> LoraFile:
    """A file in diffusers' format, from this library or any trainer that peft's names come out of.

    Raises:
        CheckpointError: if it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"it is not a safetensors file ({one_line(error)})", where=str(path), next="give a LoRA's"
        ) from error
    names = [key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)]
    known = {name + ending for name in names for ending in (DOWN, UP)}
    if not names or known != set(tensors):
        other = sorted(known ^ set(tensors))
        raise CheckpointError(
            f"it is no plain LoRA in diffusers' format{f', see {other[0]}' if other else ''}",
            where=str(path),
            next="give one that `draft train` or a diffusers trainer wrote",
        )
    factors = {}
    for name in names:
        down, up = tensors[name + DOWN], tensors[name + UP]
        if not (down.ndim > 1 and up.ndim > 1 and len(down) == up.shape[1] and down.is_floating_point()):
            raise CheckpointError(
                f"its factors of {name} have no rank in common, {down.dtype} {tuple(down.shape)} and {tuple(up.shape)}",
                where=str(path),
                next="copy it again",
            )
        if not (down.isfinite().all() and up.isfinite().all()):
            raise CheckpointError(
                f"its factors of {name} are not finite", where=str(path), next="copy it again, or train it again"
            )
        factors[name] = (down, up)
    try:
        settings = json.loads(metadata.get(DIFFUSERS_KEY) or metadata.get(CONFIG_KEY) or "{}")
        for name, (down, up) in factors.items():
            scale = _scale(name, len(down), settings, behind_component=DIFFUSERS_KEY in metadata)
            factors[name] = (down, up * scale)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"its settings cannot be read ({one_line(error)})", where=str(path), next="copy it again"
        ) from error
    return LoraFile(path, factors, settings if CONFIG_KEY in metadata else {})


def _scale(name: str, rank: int, settings: Mapping[str, Any], *, behind_component: bool) -> float:
    """Factor of B A: alpha / r as peft has it; 1 where the file does not tell, as diffusers takes it."""
    component, _, layer = name.partition(".")
    prefix = f"{component}." if behind_component else ""
    patterns = settings.get(f"{prefix}alpha_pattern") or {}  # regular expressions, of which the first that fits counts
    alpha = patterns.get(get_pattern_key(patterns, layer), settings.get(f"{prefix}lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if settings.get(f"{prefix}use_rslora") else rank)


# Mixing


@dataclass(frozen=True)
class Mix:
    """What `mix_loras` wrote.

    Arguments:
        folder: of the LoRA.
        kept: share of the squared norm of the sum that it has; less than 1 only where its rank was limited.
    """

    folder: Path
    kept: float = 1.0


def require_new_folder(folder: Path) -> None:
    """Refuses to write a LoRA where something is.

    Raises:
        DraftError: if `folder` is not empty, or a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DraftError("it is there already, and not empty", where=str(folder), next="name a new folder")


def mix_loras(sources: Sequence[tuple[Path, float]], folder: Path, *, rank: int | None = None) -> Mix:
    """Writes the LoRA whose contribution is the weighted sum of several.

    Arguments:
        sources: folders of runs or of LoRAs, or files; each with its weight.
        folder: to be made; it must not hold anything.
        rank: of the LoRA at most, 1 or more: what fits of the sum in the sense of least squares (Eckart and Young
            1936). None takes the sum as it is, whose rank is the sum of the ranks.

    Raises:
        DraftError: if they are not LoRAs of one model on the same layers, a weight is not finite, `rank` is not from 1
            on, or `folder` is not empty.
    """
    for path, weight in sources:
        require_finite(weight, where=f"the weight of {path}")
    require_from_one(1 if rank is None else rank, where="rank")
    require_new_folder(folder)
    files = [lora_files(path) for path, _ in sources]
    _refuse_other_models([path for path, _ in sources])
    for found, (path, _) in zip(files, sources, strict=True):
        if found.keys() != files[0].keys():
            raise DraftError(
                f"it adapts {_named(found)}, {sources[0][0]} adapts {_named(files[0])}",
                where=str(path),
                next="mix LoRAs of one model",
            )
    weights = [weight for _, weight in sources]
    norms = _Norms()
    mixed = {name: _mixed([read_lora(found[name]) for found in files], weights, rank, norms) for name in files[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (state, metadata) in mixed.items():
        save_file(state, folder / name, metadata)
    return Mix(folder, norms.kept / norms.total if norms.kept < norms.total else 1.0)


@dataclass
class _Norms:
    """Squared norms of sums, and of what is kept of them."""

    total: float = 0.0
    kept: float = 0.0


def _mixed(
    loras: Sequence[LoraFile], weights: Sequence[float], rank: int | None, norms: _Norms
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    first = loras[0]
    for other in loras[1:]:
        if other.shapes != first.shapes:
            different = sorted(
                name for name in {*first.shapes, *other.shapes} if first.shapes.get(name) != other.shapes.get(name)
            )
            raise DraftError(
                f"it and {first.path} differ in {len(different)} of their layers, first {different[0]}",
                where=str(other.path),
                next="mix LoRAs of one model and the same targets",
            )
    state = {}
    for name in first.factors:
        downs, ups = zip(*(lora.factors[name] for lora in loras), strict=True)
        down, up = torch.cat(downs), torch.cat([weight * up for weight, up in zip(weights, ups, strict=True)], dim=1)
        if rank is not None:
            down, up = _limited(down, up, rank, norms)
        state[name + DOWN], state[name + UP] = down.contiguous(), up.contiguous()
    if not first.config:  # diffusers reads the ranks off the shapes, and takes alpha for the rank
        return state, {"format": "pt"}
    ranks = {name.partition(".")[2]: len(state[name + DOWN]) for name in first.factors}
    patterns = {re.escape(layer): rank for layer, rank in ranks.items()}
    config = {**first.config, "rank_pattern": patterns, "alpha_pattern": patterns, "use_rslora": False}
    return state, {"format": "pt", CONFIG_KEY: json.dumps(config)}


def _limited(down: torch.Tensor, up: torch.Tensor, rank: int, norms: _Norms) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the nearest matrix to B A of this rank or less; those of convolutions are taken for matrices.

    B A = Q_b (R_b R_a^T) Q_a^T, whose singular values are those of the small matrix in the middle.
    """
    (q_a, r_a), (q_b, r_b) = (torch.linalg.qr(factor.double()) for factor in (down.flatten(1).T, up.flatten(1)))
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    norms.total += float(values.square().sum())
    norms.kept += float(values[:rank].square().sum())
    roots = values[:rank].sqrt()
    narrow_up, narrow_down = q_b @ left[:, :rank] * roots, (q_a @ right[:rank].T * roots).T
    return (
        narrow_down.to(down).view(len(roots), *down.shape[1:]),
        narrow_up.to(up).view(len(up), len(roots), *up.shape[2:]),
    )


def _named(files: Mapping[str, Path]) -> str:
    return "one denoiser" if len(files) == 1 else f"{len(files)} denoisers"


def _refuse_other_models(paths: Sequence[Path]) -> None:
    """Shapes alone do not tell two models of one family apart; the records of the runs do, where they lie beside."""
    known = [(path, model) for path in paths if (model := base_model(path)) is not None]
    for path, model in known[1:]:
        first, expected = known[0]
        if model != expected:
            raise DraftError(
                f"it is a LoRA of {model}, {first} is one of {expected}", where=str(path), next="mix LoRAs of one model"
            )


def base_model(path: Path) -> str | None:
    """The model that the run around a LoRA was made with, None where no run is around it."""
    folder = run_around(path, "run.json", "recipe.yaml")
    if folder is None:
        return None
    try:
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"it cannot be read as the record of a run ({one_line(error)})",
            where=str(folder / "run.json"),
            next="give the LoRA's file, copied out of this folder",
        ) from error


# For other programs


def export_lora(source: Path, form: str, output: Path) -> Path:
    """Writes one LoRA as a single file for another program; returns the file.

    "diffusers" is the file that `load_lora_weights` takes. "comfyui" has the names that ComfyUI, and other programs
    that read kohya's, know for a UNet and its text encoders; for a transformer those of diffusers, which ComfyUI reads
    for the families that it knows. No settings and no alphas stand beside the weights: their scale is in B.

    Raises:
        DraftError: if the source holds LoRAs of two denoisers, the format is unknown, or `output` is no .safetensors
            file, or the source itself.
    """
    if form not in FORMATS:
        raise DraftError(f"unknown format {form!r}", where="--format", next=f"give one of {', '.join(FORMATS)}")
    if output.suffix != ".safetensors":
        raise DraftError("it is no name of a .safetensors file", where=str(output), next="end it in .safetensors")
    files = lora_files(source)
    if len(files) > 1:
        raise DraftError(
            f"it holds LoRAs of {len(files)} denoisers, in {' and '.join(files)}",
            where=str(source),
            next="export one of these files at a time",
        )
    lora = read_lora(next(iter(files.values())))
    if output.exists() and output.samefile(lora.path):
        raise DraftError("it is the LoRA itself", where=str(output), next="name another file to write")
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "diffusers":
        with safe_open(lora.path, framework="pt") as opened:
            save_file(load_file(lora.path), output, opened.metadata())
        return output
    kohya = all(name.startswith(("unet.", *TEXT_ENCODERS)) for name in lora.factors)
    state = {
        (_as_clip(name) if kohya else name) + ending: factor.contiguous()
        for name, factors in lora.factors.items()
        for ending, factor in zip((DOWN, UP), factors, strict=True)
    }
    if kohya:
        converted = convert_state_dict_to_kohya(state)
        state = {key: tensor for key, tensor in converted.items() if not key.endswith(".alpha")}
    save_file(state, output, {"format": "pt"})
    return output


def _as_clip(layer: str) -> str:
    """A layer with the prefix by which other programs know a text encoder's."""
    component, _, inner = layer.partition(".")
    is_bare = layer.startswith(TEXT_ENCODERS) and inner.startswith("encoder.")
    return f"{component}.{CLIP_PREFIX}{inner}" if is_bare else layer
