"""Fine-tune any diffusers pipeline on any differentiable reward.

The names below load on first use, so that `import draft_core` pulls in no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draft_core.builder import build, load_pipeline, load_reward
    from draft_core.catalog import load_catalog
    from draft_core.errors import DraftError
    from draft_core.estimators import (
        AlignProp,
        Draft,
        DraftK,
        DraftLV,
        DRTune,
        FlowBPSparse,
        PrefixReuse,
        Refl,
        ShortPrefix,
        StepList,
    )
    from draft_core.objective import Objective
    from draft_core.plan import StepPlan
    from draft_core.recipe import load_recipe
    from draft_core.sampler import DifferentiableSampler
    from draft_core.trainer import Trainer

__version__ = "0.1.0"

_HOMES = {
    "AlignProp": "estimators",
    "DRTune": "estimators",
    "DifferentiableSampler": "sampler",
    "Draft": "estimators",
    "DraftError": "errors",
    "DraftK": "estimators",
    "DraftLV": "estimators",
    "FlowBPSparse": "estimators",
    "Objective": "objective",
    "PrefixReuse": "estimators",
    "Refl": "estimators",
    "ShortPrefix": "estimators",
    "StepList": "estimators",
    "StepPlan": "plan",
    "Trainer": "trainer",
    "build": "builder",
    "load_catalog": "catalog",
    "load_pipeline": "builder",
    "load_recipe": "recipe",
    "load_reward": "builder",
}

__all__ = [
    "AlignProp",
    "DRTune",
    "DifferentiableSampler",
    "Draft",
    "DraftError",
    "DraftK",
    "DraftLV",
    "FlowBPSparse",
    "Objective",
    "PrefixReuse",
    "Refl",
    "ShortPrefix",
    "StepList",
    "StepPlan",
    "Trainer",
    "build",
    "load_catalog",
    "load_pipeline",
    "load_recipe",
    "load_reward",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
