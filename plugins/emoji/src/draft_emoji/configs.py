"""The options of the scores of emoji, and the prompts that each can read. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from draft_core.plugin import Field, RelativePromptConfig, RewardConfig
from draft_emoji.scene_words import SceneWords, things
from draft_emoji.thing_words import named_thing


class _SceneWordsConfig(RewardConfig):
    """Options of a score that reads what the two things of a prompt are."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that do not ask for two of the things."""
        words = SceneWords(things())
        for prompt in prompts:
            words.asked(prompt, where=f"reward {self.kind!r}")


class _ThingConfig(RewardConfig):
    """Options of a score that reads which one of the things a prompt names."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that name none of the things, or several."""
        for prompt in prompts:
            named_thing(prompt, where=f"reward {self.kind!r}")


class EmojiClipConfig(RelativePromptConfig):
    """Options of `emoji-clip`: control words for and against, such as "3d style, {prompt}"."""

    kind: Literal["emoji-clip"] = "emoji-clip"


class EmojiContrastConfig(RewardConfig):
    """Options of `emoji-contrast`."""

    kind: Literal["emoji-contrast"] = "emoji-contrast"
    scale: float = Field(
        50.0, gt=0, le=1000, description="Factor of the cosines before the softmax; the CLIP itself learnt 19.9."
    )


class EmojiPreferenceConfig(RewardConfig):
    """Options of `emoji-preference`: there are none."""

    kind: Literal["emoji-preference"] = "emoji-preference"


class EmojiJudgeConfig(_ThingConfig):
    """Options of `emoji-judge`: there are none."""

    kind: Literal["emoji-judge"] = "emoji-judge"


class EmojiJudgeTop1Config(_ThingConfig):
    """Options of `emoji-judge-top1`: there are none."""

    kind: Literal["emoji-judge-top1"] = "emoji-judge-top1"


class SceneConfig(RewardConfig):
    """Options of `emoji-scene`: there are none."""

    kind: Literal["emoji-scene"] = "emoji-scene"


class SceneContrastConfig(_SceneWordsConfig):
    """Options of `emoji-scene-contrast`."""

    kind: Literal["emoji-scene-contrast"] = "emoji-scene-contrast"
    scale: float = Field(50.0, gt=0, le=1000, description="Factor of the cosines before the softmax.")
    near_misses: int = Field(32, ge=1, le=128, description="How many prompts that are almost the same it is told from.")


class SceneJudgeConfig(_SceneWordsConfig):
    """Options of `emoji-scene-judge`: there are none."""

    kind: Literal["emoji-scene-judge"] = "emoji-scene-judge"


class SceneJudgeRightConfig(_SceneWordsConfig):
    """Options of `emoji-scene-judge-right`: there are none."""

    kind: Literal["emoji-scene-judge-right"] = "emoji-scene-judge-right"


class EmojiMotionConfig(RewardConfig):
    """Options of `emoji-motion`: there are none."""

    kind: Literal["emoji-motion"] = "emoji-motion"


class EmojiPathConfig(RewardConfig):
    """Options of `emoji-path`: there are none."""

    kind: Literal["emoji-path"] = "emoji-path"


class EmojiMotionThingConfig(RewardConfig):
    """Options of `emoji-motion-thing`: there are none."""

    kind: Literal["emoji-motion-thing"] = "emoji-motion-thing"
