"""CLIPScore: the cosine between an image and its prompt, in one of three published forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_length

from draft_core.rewards import FrozenModule, RelativePrompt, TextFeatureCache, checked_images
from draft_reward_clipscore import ClipScoreConfig
from draft_reward_clipscore.encoders import WHERE, load_encoder

PAPERS_WEIGHT = 2.5
PAPERS_PREFIX = "A photo depicts "


class ClipScoreReward(FrozenModule):
    """How well an image fits its prompt in the eyes of a CLIP, differentiable.

    Hessel et al. 2021, "CLIPScore", arXiv 2104.08718, section 3: 2.5 max(cos, 0), or another `definition`. Where
    the cosine is negative the two clamped forms are zero and have no gradient; trained CLIPs hardly get there.

    Raises:
        DraftError: if the model is missing or does not fit.
    """

    def __init__(self, config: ClipScoreConfig) -> None:
        super().__init__()
        self.definition = config.definition
        default = PAPERS_PREFIX if config.definition == "clipscore" else ""
        self.prefix = default if config.prefix is None else config.prefix
        self.encoder = load_encoder(config)
        self.relative = RelativePrompt(config.positive, config.negative, config.k)
        self.memory = TextFeatureCache()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
        """
        images = checked_images(images, prompts, where=WHERE)
        with torch.autocast(images.device.type, enabled=False):
            images = unit_length(self.encoder.images(images).float())
            texts = self.memory(
                prompts,
                lambda prompt: self.relative(prompt, lambda text: self.text_features(text, images.device)),
                images.device,
            )
            cosines = (images * texts).sum(1)
            return defined(cosines, self.definition)

    def text_features(self, prompt: str, device: torch.device) -> Tensor:
        """Embedding (D,) of unit length, float32, of a text with the prefix before it."""
        return unit_length(self.encoder.text(self.prefix + prompt, device).float())[0]


def defined(cosines: Tensor, definition: str) -> Tensor:
    """The scores that a definition makes of cosines."""
    if definition == "cosine":
        return cosines
    return {"clipscore": PAPERS_WEIGHT, "percent": 100.0}[definition] * cosines.clamp_min(0)
