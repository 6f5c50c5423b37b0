"""What a reward file builds on: the base class, the check of its inputs, and a cache of text features.

Images are resized and normalized by `draft_core.rewards.images`; weights are found and loaded by
`draft_core.rewards.weights`.
"""

from draft_core.rewards.inputs import PromptMemory, checked_images
from draft_core.rewards.protocol import FrozenModule, Reward

__all__ = ["FrozenModule", "PromptMemory", "Reward", "checked_images"]
