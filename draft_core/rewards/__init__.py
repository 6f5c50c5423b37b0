"""What a reward's own file builds on: the protocol, the frozen base class, checked input, and features of prompts."""

from draft_core.rewards.inputs import RelativePrompt, TextFeatureCache, checked_images, checked_videos
from draft_core.rewards.protocol import FrozenModule, Reward, RewardWithComponents, from_reward_fn

__all__ = [
    "FrozenModule",
    "RelativePrompt",
    "Reward",
    "RewardWithComponents",
    "TextFeatureCache",
    "checked_images",
    "checked_videos",
    "from_reward_fn",
]
