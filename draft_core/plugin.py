"""All that a plugin's naming file may import: it says what exists, and imports no torch.

Names wing. May import: plan, config, specs, hookspecs.
"""

from draft_core.plan import StepPlan
from draft_core.registry.config import Config, Field, MethodConfig, RewardConfig
from draft_core.registry.hooks import hookimpl
from draft_core.registry.specs import MethodSpec, PretrainedSpec, RewardSpec

__all__ = [
    "Config",
    "MethodConfig",
    "MethodSpec",
    "Field",
    "PretrainedSpec",
    "RewardConfig",
    "RewardSpec",
    "StepPlan",
    "hookimpl",
]
