"""How sure a CLIP is that an image shows its prompt and no other: by softmax over what else it might show."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from draft_core.rewards import checked_images
from draft_emoji import FOLDER, EmojiContrastConfig
from draft_emoji.alignment import EmojiClip

STYLED = re.compile(r"(?P<style>(?:noto|3d|flat) style, )?(?P<thing>[^,]*)", re.IGNORECASE)


class EmojiContrast(EmojiClip):
    """log softmax of `scale` times the cosines with the prompt and with other things in its style, at the prompt.

    The zero-shot classifier of CLIP (Radford et al. 2021). The cosine alone also rises where an image comes nearer to
    all texts; this rises only where it comes nearer to its own. The other things are those of emoji-train, so none that
    a held-out prompt asks for.
    """

    def __init__(self, config: EmojiContrastConfig) -> None:
        super().__init__(config)
        self.scale = config.scale
        lines = (FOLDER / "prompts" / "emoji-train.txt").read_text(encoding="utf-8").splitlines()
        self.things = tuple(_parts(line)[1] for line in lines)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32, at most 0, of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=self.where)
        with torch.autocast(images.device.type, enabled=False):
            texts = [text for prompt in prompts for text in self.choices(prompt)]
            of_texts = self.text_features(texts, images.device).unflatten(0, (len(prompts), -1))
            cosines = torch.einsum("bd,bnd->bn", self.image_features(images), of_texts)
            scores: Tensor = (self.scale * cosines).log_softmax(1)[:, 0]
        return scores

    def choices(self, prompt: str) -> list[str]:
        """The prompt and N other things in its style, N the same for all prompts."""
        style, own = _parts(prompt)
        others = [style + thing for thing in self.things if thing != own]
        return [prompt, *others[: len(self.things) - 1]]


def _parts(prompt: str) -> tuple[str, str]:
    """Of "STYLE style, THING, TAG" the first words up to the thing, or "", and the thing."""
    found = STYLED.match(prompt)
    assert found is not None  # it may match nothing
    return found["style"] or "", found["thing"].strip().lower()
