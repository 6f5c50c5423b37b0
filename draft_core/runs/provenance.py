"""Versions, licences and peak memory: what a report says of a run's surroundings."""

from __future__ import annotations

import importlib.metadata
import sys

import torch

from draft_core.recipe.schema import RecipeBase
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import Licence


def versions(catalog: Catalog) -> dict[str, str]:
    """Distribution -> version, of the plugins, the libraries a run depends on, and Python."""
    libraries = ("draft-core", "torch", "diffusers", "transformers", "peft", "accelerate")
    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    return {**catalog.versions(), **{name: importlib.metadata.version(name) for name in libraries}, **python}


def licences(recipe: RecipeBase, catalog: Catalog) -> list[Licence]:
    """The licences of the model and of every reward that a recipe names, each once."""
    found = []
    if recipe.model.pretrained in catalog.pretrained:
        spec = catalog.pretrained[recipe.model.pretrained].spec
        found.append(Licence(f"model {spec.alias}", spec.license, None))
    for config in [*recipe.rewards, *recipe.metrics]:
        reward = catalog.reward(config.kind).spec
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
