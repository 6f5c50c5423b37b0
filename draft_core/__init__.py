"""Fine-tune any diffusers pipeline on any differentiable reward.

The names below load on first use, so that `import draft_core` pulls in no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draft_core.adapters.files import load_lora
    from draft_core.adapters.lora import add_lora
    from draft_core.errors import DraftError
    from draft_core.evaluation.evaluate import evaluate
    from draft_core.evaluation.settings import EvaluationSettings
    from draft_core.learners.direct import DirectLearner
    from draft_core.library.loras import save_lora
    from draft_core.library.rewards import load_reward
    from draft_core.library.scores import score
    from draft_core.plan import Renoising, StepPlan
    from draft_core.prompt_rows import PromptRow, row_key
    from draft_core.recipe.load import load_recipe
    from draft_core.recipe.objects import new_recipe
    from draft_core.recipe.schema import ImageFile, LoraConfig, ModelConfig, SchedulerConfig
    from draft_core.recipe.trackers import TrackersConfig
    from draft_core.registry.catalog import load_catalog
    from draft_core.registry.flow import FlowBPBridge, FlowBPLagrange, FlowBPSparse, LeapAlign
    from draft_core.registry.methods import (
        AlignProp,
        Draft,
        DraftK,
        DraftLV,
        DRTune,
        PrefixReuse,
        Refl,
        ShortPrefix,
        StepList,
    )
    from draft_core.rewards.columns import CallColumns
    from draft_core.rewards.objective import Objective
    from draft_core.runs.build import build
    from draft_core.runs.pipeline_loading import load_pipeline
    from draft_core.runs.run import run_recipe
    from draft_core.runs.sample import sample
    from draft_core.sampling.rollout import StepOutput
    from draft_core.sampling.sampler import DifferentiableSampler
    from draft_core.search.best_of_n import best_of_n
    from draft_core.search.noise import Ascent, optimise_noise
    from draft_core.setting import PromptFile
    from draft_core.training.checkpoints import load_checkpoint, save_checkpoint
    from draft_core.training.settings import CheckpointSettings, FrameSettings, RegularizerSettings, TrainSettings
    from draft_core.training.trainer import Trainer

__version__ = "0.1.0"

_HOMES = {
    "AlignProp": "registry.methods",
    "Ascent": "search.noise",
    "CallColumns": "rewards.columns",
    "CheckpointSettings": "training.settings",
    "DRTune": "registry.methods",
    "DifferentiableSampler": "sampling.sampler",
    "DirectLearner": "learners.direct",
    "Draft": "registry.methods",
    "DraftError": "errors",
    "DraftK": "registry.methods",
    "DraftLV": "registry.methods",
    "EvaluationSettings": "evaluation.settings",
    "FlowBPBridge": "registry.flow",
    "FlowBPLagrange": "registry.flow",
    "FlowBPSparse": "registry.flow",
    "FrameSettings": "training.settings",
    "ImageFile": "recipe.schema",
    "LeapAlign": "registry.flow",
    "LoraConfig": "recipe.schema",
    "ModelConfig": "recipe.schema",
    "Objective": "rewards.objective",
    "PrefixReuse": "registry.methods",
    "PromptFile": "setting",
    "PromptRow": "prompt_rows",
    "Refl": "registry.methods",
    "RegularizerSettings": "training.settings",
    "Renoising": "plan",
    "SchedulerConfig": "recipe.schema",
    "ShortPrefix": "registry.methods",
    "StepList": "registry.methods",
    "StepOutput": "sampling.rollout",
    "StepPlan": "plan",
    "TrackersConfig": "recipe.trackers",
    "TrainSettings": "training.settings",
    "Trainer": "training.trainer",
    "add_lora": "adapters.lora",
    "best_of_n": "search.best_of_n",
    "build": "runs.build",
    "evaluate": "evaluation.evaluate",
    "load_catalog": "registry.catalog",
    "load_checkpoint": "training.checkpoints",
    "load_lora": "adapters.files",
    "load_pipeline": "runs.pipeline_loading",
    "load_recipe": "recipe.load",
    "load_reward": "library.rewards",
    "new_recipe": "recipe.objects",
    "optimise_noise": "search.noise",
    "row_key": "prompt_rows",
    "run_recipe": "runs.run",
    "sample": "runs.sample",
    "save_checkpoint": "training.checkpoints",
    "save_lora": "library.loras",
    "score": "library.scores",
}

__all__ = [
    "AlignProp",
    "Ascent",
    "CallColumns",
    "CheckpointSettings",
    "DRTune",
    "DifferentiableSampler",
    "DirectLearner",
    "Draft",
    "DraftError",
    "DraftK",
    "DraftLV",
    "EvaluationSettings",
    "FlowBPBridge",
    "FlowBPLagrange",
    "FlowBPSparse",
    "FrameSettings",
    "ImageFile",
    "LeapAlign",
    "LoraConfig",
    "ModelConfig",
    "Objective",
    "PrefixReuse",
    "PromptFile",
    "PromptRow",
    "Refl",
    "RegularizerSettings",
    "Renoising",
    "SchedulerConfig",
    "ShortPrefix",
    "StepList",
    "StepOutput",
    "StepPlan",
    "TrackersConfig",
    "TrainSettings",
    "Trainer",
    "add_lora",
    "best_of_n",
    "build",
    "evaluate",
    "load_catalog",
    "load_checkpoint",
    "load_lora",
    "load_pipeline",
    "load_recipe",
    "load_reward",
    "new_recipe",
    "optimise_noise",
    "row_key",
    "run_recipe",
    "sample",
    "save_checkpoint",
    "save_lora",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
