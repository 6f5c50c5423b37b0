"""What a report says of a run: its settings, and versions, licences and peak memory around it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from draft_core.evaluation.collapse import CollapseRule, Verdict
from draft_core.evaluation.evaluate import as_evaluated
from draft_core.prompt_rows import column_of_argument
from draft_core.recipe.resolve import ResolvedRecipe
from draft_core.recipe.schema import ImageFile, RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.registry.environments import spec_of
from draft_core.reporting.run_record import Facts, Licence
from draft_core.runs.continuation import images_per_update
from draft_core.runs.loading.quantization import packages_of
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.training.trainer import Trainer


def facts_of(
    resolved: ResolvedRecipe,
    trainer: Trainer,
    evaluated: DifferentiableSampler,
    rule: CollapseRule,
    verdict: Verdict,
    catalog: Catalog,
    *,
    seconds: float,
    scales: Sequence[float],
) -> Facts:
    """What is known of the run now.

    Arguments:
        evaluated: what draws the evaluations.
        verdict: of the last evaluation.
        seconds: that the run took until now.
        scales: of the LoRA, at which images were drawn.
    """
    recipe, device = resolved.recipe, trainer.device
    return Facts(
        model=recipe.model.pretrained,
        location=resolved.location,
        method=recipe.method.kind,
        rewards=rule.trained,
        prompts=list(resolved.evaluation_prompts),
        seeds=list(resolved.seeds),
        prompts_are_unseen=recipe.held_out_prompts is not None,
        tolerance=rule.tolerance,
        caps=rule.caps,
        call=_call_of(recipe, evaluated),
        columns=_first_row(resolved),
        drawn_otherwise=drawn_otherwise(recipe, trainer.sampler, evaluated),
        images_per_update=images_per_update(recipe.model_dump()),
        versions=recipe.versions or {},
        licences=licences(recipe, catalog),
        device=str(device),
        peak_memory_bytes=peak_memory(device),
        seconds=seconds,
        collapse=verdict.lost if verdict.collapsed else (),
        scales=scales,
        dtype=recipe.model.dtype,
        output="frames" if hasattr(trainer.sampler.pipe, "video_processor") else "images",
        source=_source(recipe, catalog),
        scheduler=recipe.model.scheduler.model_dump() if recipe.model.scheduler else {},
        trained_on=trained_on(recipe),
    )


def _source(recipe: RecipeBase, catalog: Catalog) -> dict[str, str]:
    said = recipe.model.model_dump(include={"pipeline", "config", "variant", "quantization"}, exclude_none=True)
    alias = catalog.pretrained.get(recipe.model.pretrained)
    return said if alias is None or alias.spec.revision is None else {**said, "revision": alias.spec.revision}


def trained_on(recipe: RecipeBase) -> str:
    """The name of the file that is trained on in the place of rewards; empty if none is."""
    file = recipe.method.prompt_file
    return "" if recipe.method.trains_on_rewards or file is None else file.name


def drawn_otherwise(recipe: RecipeBase, trained: DifferentiableSampler, evaluated: DifferentiableSampler) -> str:
    """How the images of evaluations are drawn that training draws otherwise, a sentence; empty if it does not."""
    in_training = _call_of(recipe, trained)
    told = [
        f"{name} {value} ({in_training.get(name, 'the default')} in training)"
        for name, value in _call_of(recipe, evaluated).items()
        if in_training.get(name) != value
    ]
    told += [f"no noise in the steps ({trained.noise:g} in training)"] if trained.noise else []
    told += [f"the model's own decoder ({recipe.model.decoder} in training)"] if recipe.model.decoder else []
    return f"evaluations are drawn with {', '.join(told)}" if told else ""


def _call_of(recipe: RecipeBase, sampler: DifferentiableSampler) -> dict[str, Any]:
    """The arguments that a sampler draws evaluations with, as `Facts.call` has them."""
    said = recipe.model.model_dump(mode="json")["call"]
    call: dict[str, Any] = {"num_inference_steps": sampler.num_inference_steps}
    for name, value in as_evaluated(sampler).call_kwargs.items():
        is_image = any(isinstance(part, ImageFile) for part in _listed(recipe.model.call.get(name)))
        call[name] = said[name] if is_image else {"tuple": list(value)} if isinstance(value, tuple) else value
    return call


def _first_row(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Argument of the call -> what the first evaluated prompt's row says for it, as `Facts.columns` has it."""
    prompt, found = resolved.evaluation_prompts[0], {}
    for argument, name in resolved.recipe.model.columns.items():
        column = column_of_argument(argument, name)
        value = column.of(prompt, where=argument, may_be_blank=True)
        found[argument] = {"file": str(value)} if column.type == "image" else value
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def versions(catalog: Catalog, quantization: str | Mapping[str, str] | None = None) -> dict[str, str]:
    """Distribution -> version, of the plugins, the libraries a run depends on, and Python.

    Arguments:
        quantization: as in a recipe's model.
    """
    libraries = ["draft-core", "torch", "diffusers", "transformers", "peft", "accelerate"]
    libraries += packages_of(quantization) if quantization is not None else []
    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    return {**catalog.versions(), **{name: importlib.metadata.version(name) for name in libraries}, **python}


def licences(recipe: RecipeBase, catalog: Catalog) -> list[Licence]:
    """The licences of the model and of every reward that a recipe names, each once."""
    found = []
    if recipe.model.pretrained in catalog.pretrained:
        spec = catalog.pretrained[recipe.model.pretrained].spec
        found.append(Licence(f"model {spec.alias}", spec.license, None))
    for config in [*recipe.rewards, *recipe.metrics]:
        reward = spec_of(config, catalog)
        licence = Licence(f"reward {reward.kind}", reward.code_license, reward.weights_license)
        if licence not in found:
            found.append(licence)
    return found


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of the GPU where the run had one, else of this process; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes, macOS bytes
