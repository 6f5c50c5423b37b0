"""All that a plugin's naming file may import: it says what exists, and imports no torch.

Names wing. May import: plan, config, specs, hookspecs.
"""

from draft_core.config import Config, EstimatorConfig, Field, RewardConfig
from draft_core.hookspecs import hookimpl
from draft_core.plan import StepPlan
from draft_core.specs import EstimatorSpec, PretrainedSpec, RewardSpec

__all__ = [
    "Config",
    "EstimatorConfig",
    "EstimatorSpec",
    "Field",
    "PretrainedSpec",
    "RewardConfig",
    "RewardSpec",
    "StepPlan",
    "hookimpl",
]
