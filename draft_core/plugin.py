"""All that a plugin's naming file may import: it says what exists, and imports no torch.

Names wing. May import: config, specs, hookspecs.
"""

from draft_core.config import Config, Field, RewardConfig
from draft_core.hookspecs import hookimpl
from draft_core.specs import PretrainedSpec, RewardSpec

__all__ = ["Config", "Field", "PretrainedSpec", "RewardConfig", "RewardSpec", "hookimpl"]
