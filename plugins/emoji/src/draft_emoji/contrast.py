"""How sure a CLIP is that an image shows its prompt and no other: by softmax over what else it might show."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from draft_core.rewards import TextFeatureCache, checked_images
from draft_emoji import FOLDER
from draft_emoji.alignment import EmojiClip
from draft_emoji.configs import EmojiContrastConfig, SceneContrastConfig
from draft_emoji.scene_words import COLOURS, Asked, SceneWords, dyeable, phrase, things

STYLED = re.compile(r"(?P<style>(?:noto|3d|flat) style, )?(?P<thing>[^,]*)", re.IGNORECASE)
REMEMBERED = 2**15  # texts, a quarter of a kilobyte each


class Contrast(EmojiClip):
    """log softmax of `scale` times the cosines with the prompt and with other texts, at the prompt.

    The zero-shot classifier of CLIP (Radford et al. 2021). The cosine alone also rises where an image comes nearer to
    all texts; this rises only where it comes nearer to its own. No other text names what only held-out prompts ask for.
    """

    def __init__(self, config: EmojiContrastConfig | SceneContrastConfig) -> None:
        super().__init__(config)
        self.scale = config.scale
        self.memory = TextFeatureCache(limit=REMEMBERED)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32, at most 0, of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt, or a prompt asks
                for nothing that it can be told from.
        """
        images = checked_images(images, prompts, where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            texts = [text for prompt in prompts for text in self.choices(prompt)]
            of_texts = self.text_features(texts, images.device).view(len(prompts), -1, self.clip.config.projection_dim)
            cosines = torch.einsum("bd,bnd->bn", self.image_features(images), of_texts)
            scores: Tensor = (self.scale * cosines).log_softmax(1)[:, 0]
        return scores

    @abstractmethod
    def choices(self, prompt: str) -> list[str]:
        """The prompt and N other texts, N the same for all prompts."""


class EmojiContrast(Contrast):
    """Among the things of emoji-train, in the style of the prompt."""

    def __init__(self, config: EmojiContrastConfig) -> None:
        super().__init__(config)
        lines = (FOLDER / "prompts" / "emoji-train.txt").read_text(encoding="utf-8").splitlines()
        self.things = tuple(_parts(line)[1] for line in lines)

    def choices(self, prompt: str) -> list[str]:
        """The prompt, and all other things in its style; where its own is not in the list, all but the last."""
        style, own = _parts(prompt)
        others = [style + thing for thing in self.things if thing != own]
        return [prompt, *others[: len(self.things) - 1]]


class SceneContrast(Contrast):
    """Among prompts that differ in one thing or one colour, or have the colours swapped."""

    def __init__(self, config: SceneContrastConfig) -> None:
        super().__init__(config)
        self.count = config.near_misses
        self.words = SceneWords(things())
        lines = (FOLDER / "prompts" / "scenes-train.txt").read_text(encoding="utf-8").splitlines()
        self.things = sorted({one.thing for line in lines for one in self.words.asked(line, where=self.where)})

    def choices(self, prompt: str) -> list[str]:
        """The prompt, and `near_misses` others, which the prompt alone decides; some of them may be the same.

        Raises:
            RewardError: if the prompt does not ask for two things.
        """
        style, pair, random = _parts(prompt)[0], self.words.asked(prompt, where=self.where), Random(prompt)
        near: list[str] = []
        while len(near) < self.count:
            changed = self._changed(pair, random)
            if changed != pair:
                near.append(style + " and ".join(phrase(one.thing, one.colour) for one in changed))
        return [prompt, *near]

    def _changed(self, pair: tuple[Asked, Asked], random: Random) -> tuple[Asked, Asked]:
        """The pair with one thing or colour replaced, or with its colours swapped; at times the pair itself."""
        place, way = random.randrange(2), random.random()
        kept, one = pair[1 - place], pair[place]
        if way < 0.5 or not one.colour:
            thing = random.choice([thing for thing in self.things if thing != kept.thing])
            one = Asked(thing, one.colour if dyeable(thing) else "")
        elif way < 0.9:
            one = Asked(one.thing, random.choice(["", *COLOURS]))
        elif dyeable(kept.thing):
            kept, one = Asked(kept.thing, one.colour), Asked(one.thing, kept.colour)
        return (one, kept) if place == 0 else (kept, one)


def _parts(prompt: str) -> tuple[str, str]:
    """Of "STYLE style, THING, TAG" the first words up to the thing, or "", and the thing."""
    found = STYLED.match(prompt)
    assert found is not None  # it may match nothing
    return found["style"] or "", found["thing"].strip().lower()
