"""The library's `sample`: images of a pipeline with or without a LoRA, which `draft sample` puts into a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from draft_core.adapters.files import load_lora, lora_files
from draft_core.adapters.lora import adapters_scaled, is_adapted
from draft_core.errors import DraftError, require_finite
from draft_core.evaluation.evaluate import evaluate
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.rewards.objective import Objective
from draft_core.runs.pipeline_loading import guided, load_pipeline
from draft_core.runs.progress import Progress, silent
from draft_core.sampling.sampler import DifferentiableSampler

STEPS = 50  # where neither the caller nor the model's plugin says otherwise; diffusers' own default


def sample(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    lora: Path | None = None,
    scales: Sequence[float] = (1.0,),
    images_per_prompt: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    catalog: Catalog | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """Images (F, P, S, 3, H, W) in [0, 1] for F scales, P prompts and S images of each; of videos the middle frame.

    An image is the one that plain diffusers makes from `torch.Generator("cpu").manual_seed(seed + i)`.

    Arguments:
        pipeline: a diffusers pipeline, or what `load_pipeline` takes: an alias, a folder, a hub name.
        prompts: the texts themselves, at least one.
        lora: the folder of a run or of a LoRA, or a file; it stays loaded in a pipeline that was given.
        scales: factors of the LoRA; 0 is the base model, 1 what was trained.
        images_per_prompt: S, from the seeds `seed`, `seed + 1`, ...
        steps: of the sampler; the alias' own number, or 50, if left out.
        guidance: scale of the guidance; the alias' own, or the pipeline's default, if left out.
        catalog: what is installed; loaded if left out.
        progress: called with a stage, how many images are done, of how many, and a note.

    Raises:
        RecipeError: if there is no such model.
        DraftError: if the LoRA cannot be loaded into it, or there is none to scale.
    """
    catalog = catalog if catalog is not None else load_catalog()
    if not prompts:
        raise DraftError("there are no prompts", where="sample", next="give at least one")
    if lora:
        lora_files(lora)
    for scale in scales:
        require_finite(scale, where=f"scales {list(scales)}")
    name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
    pipe = load_pipeline(pipeline, catalog=catalog) if isinstance(pipeline, str) else pipeline
    if lora:
        load_lora(pipe, lora)
    scaled = is_adapted(pipe)
    if not scaled and list(scales) != [1.0]:
        raise DraftError("there is no LoRA to scale", where=f"scales {list(scales)}", next="give one as `lora`")
    known = catalog.pretrained.get(name)
    call: dict[str, Any] = dict(known.spec.call) if known else {}
    inference_steps = steps or call.pop("num_inference_steps", STEPS)
    call.pop("num_inference_steps", None)
    sampler = DifferentiableSampler(pipe, num_inference_steps=inference_steps, **{**call, **guided(pipe, guidance)})
    made = []
    for scale in scales:
        with adapters_scaled(pipe, scale) if scaled else nullcontext():
            evaluation = evaluate(
                sampler,
                Objective({}),
                prompts,
                range(seed, seed + images_per_prompt),
                batch_size=images_per_prompt,
                progress=_named("sample" if len(scales) == 1 else f"scale {scale:g}", progress),
            )
        made.append(evaluation.images.view(len(prompts), images_per_prompt, *evaluation.images.shape[1:]))
    return torch.stack(made)


def _named(stage: str, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total, "images")
