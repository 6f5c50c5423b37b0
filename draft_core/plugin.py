"""All that a plugin's naming file may import: it says what exists, and imports no torch."""

from draft_core.leaps import Leap, Leaps
from draft_core.plan import Renoising, StepPlan
from draft_core.registry.config import Config, DirectConfig, Field, MethodConfig, RewardConfig
from draft_core.registry.hooks import hookimpl
from draft_core.registry.relative import RelativePromptConfig
from draft_core.registry.specs import MethodSpec, PretrainedSpec, RewardSpec
from draft_core.setting import RecipePath

__all__ = [
    "Config",
    "DirectConfig",
    "Field",
    "Leap",
    "Leaps",
    "MethodConfig",
    "MethodSpec",
    "PretrainedSpec",
    "RecipePath",
    "RelativePromptConfig",
    "Renoising",
    "RewardConfig",
    "RewardSpec",
    "StepPlan",
    "hookimpl",
]
