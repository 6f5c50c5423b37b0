"""What a reward's own file builds on: the protocol, the frozen base class, checked input and cached text features."""

from draft_core.rewards.inputs import TextFeatureCache, checked_images, checked_videos
from draft_core.rewards.protocol import FrozenModule, Reward, RewardWithComponents

__all__ = ["FrozenModule", "Reward", "RewardWithComponents", "TextFeatureCache", "checked_images", "checked_videos"]
