"""Which two things an image of the scenes model shows, and in which colours, by a network that no model is tuned on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from draft_core.rewards import FrozenModule, checked_images
from draft_core.rewards.images import normalize, resize_like_pil
from draft_core.rewards.weights import load_pretrained
from draft_emoji import FOLDER
from draft_emoji.configs import SceneJudgeConfig, SceneJudgeRightConfig
from draft_emoji.scene_words import COLOURS, Asked, SceneWords

SIDE = 64
WIDTH, TOP, BOTTOM = 38, 10, 54  # of a half, in pixels: its columns from the outer edge, its rows


class SceneJudge(FrozenModule):
    """Mean log-probability of what a prompt asks of a scene, or whether all of it is there.

    It asks for two things, each of which may have a colour; which stands left is open, so the better order counts. For
    each half of the image the network gives probabilities of the things, and of the colours.
    """

    def __init__(self, config: SceneJudgeConfig | SceneJudgeRightConfig) -> None:
        super().__init__()
        self.where = f"reward {config.kind!r}"
        self.right = isinstance(config, SceneJudgeRightConfig)
        self.network = load_pretrained(
            ResNetForImageClassification, str(FOLDER / "scene-judge"), where=self.where, option="the package's files"
        )
        names = [self.network.config.id2label[i] for i in range(self.network.config.num_labels)]
        self.things = {name: i for i, name in enumerate(names[: -len(COLOURS)])}
        self.words = SceneWords(self.things)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]: log-probabilities, or 1 where all is right and else 0.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt, or a prompt does
                not ask for two things.
        """
        images = checked_images(images, prompts, where=self.where)
        asked = [self.words.asked(prompt, where=self.where) for prompt in prompts]
        with torch.autocast(images.device.type, enabled=False):
            pixels = normalize(resize_like_pil(images, SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
            logits = self.network(halves(pixels)).logits.unflatten(0, (-1, 2))
        things, colours = (part.log_softmax(-1) for part in logits.split([len(self.things), len(COLOURS)], dim=-1))
        rows = [
            max(self.score(things[i], colours[i], pair) for pair in (wanted, wanted[::-1]))
            for i, wanted in enumerate(asked)
        ]
        return torch.tensor(rows, dtype=torch.float32, device=images.device)

    def score(self, things: Tensor, colours: Tensor, wanted: Sequence[Asked]) -> float:
        """The score of one image with the left and the right thing: `things` (2, T), `colours` (2, C)."""
        found = [(side, things, self.things[one.thing]) for side, one in enumerate(wanted)]
        found += [(side, colours, COLOURS.index(one.colour)) for side, one in enumerate(wanted) if one.colour]
        if self.right:
            return float(all(int(table[side].argmax()) == at for side, table, at in found))
        return float(torch.stack([table[side, at] for side, table, at in found]).mean())


def halves(images: Tensor) -> Tensor:
    """The left and the right half of images (B, 3, 64, 64): (2B, 3, 64, 64), the two of an image in a row."""
    rows = images[..., TOP:BOTTOM, :]
    both = torch.stack([rows[..., :WIDTH], rows[..., -WIDTH:]], dim=1).flatten(0, 1)
    return F.interpolate(both, size=(SIDE, SIDE), mode="bilinear")
