"""The rewards: the distance of colours to a palette or to a colour of each prompt, and of hues to a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from draft_core.errors import RewardError
from draft_core.rewards import FrozenModule, checked_images
from draft_reward_colour import AskedColourConfig, Background, ColourHarmonyConfig, PaletteConfig, hex_colour
from draft_reward_colour.harmony import best_fit, outside
from draft_reward_colour.lab import cie76, lab_of, polar, to_lab

LEAST_CHROMA = 1.0  # mean over an image; one with less has no colours that could clash


class PaletteReward(FrozenModule):
    """Minus the mean over pixels of the CIE76 distance to the nearest colour of a palette, differentiable.

    The nearest by a soft minimum, -log(sum(exp(-s d))) / s for a sharpness s and distances d, which lies below the
    minimum by log(K) / s at most for K colours. Pixels within the tolerance of the background are left out of the mean;
    an image that has no others is scored whole, so that an empty one is no way out.
    """

    def __init__(self, config: PaletteConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images with a prompt each.
        """
        images = checked_images(images, prompts, where="reward 'palette'")
        with torch.autocast(images.device.type, enabled=False):
            lab = to_lab(images)
            distances = torch.stack([cie76(lab, lab_of(colour, images)) for colour in self.config.colours])
            nearest = -torch.logsumexp(-self.config.sharpness * distances, dim=0) / self.config.sharpness
            counts = _counts(lab, self.config.background)
            return -nearest.where(counts, 0.0).sum((1, 2)) / counts.sum((1, 2))


class AskedColourReward(FrozenModule):
    """Minus the mean over pixels of the CIE76 distance to a colour that each prompt has of its own, differentiable.

    The list of prompts says it in its column `colour`, as "#rrggbb". Pixels of the background are left out, as with
    `PaletteReward`.
    """

    def __init__(self, config: AskedColourConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Arguments:
            columns: "colour" -> B colours.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images with a prompt each, or a text is no
                colour.
        """
        images = checked_images(images, prompts, where="reward 'asked-colour'")
        with torch.autocast(images.device.type, enabled=False):
            lab = to_lab(images)
            asked = torch.stack([lab_of(_checked(colour), images) for colour in columns["colour"]])
            counts = _counts(lab, self.config.background)
            return -cie76(lab, asked).where(counts, 0.0).sum((1, 2)) / counts.sum((1, 2))


def _checked(colour: str) -> str:
    try:
        return hex_colour(colour)
    except ValueError as error:
        raise RewardError(str(error), where="reward 'asked-colour': column 'colour'") from None


def _counts(lab: Tensor, background: Background | None) -> Tensor:
    """Which pixels (B, H, W) of images in CIELAB are scored."""
    if background is None:
        return torch.ones_like(lab[:, 0], dtype=torch.bool)
    # Not "further than": a pixel that is not a number counts, and the score shows it.
    counts = ~(cie76(lab, lab_of(background.colour, lab)) <= background.tolerance)
    return counts | ~counts.any(2, keepdim=True).any(1, keepdim=True)


class ColourHarmonyReward(FrozenModule):
    """Minus the mean angle, weighted by chroma, between hues and the nearest harmonic template, differentiable.

    Template and turn are the best ones for each image and carry no gradient; at a minimum they need none. Cohen-Or
    et al. 2006 measure hue and saturation in HSV; here it is hue and chroma in CIELAB, where equal steps look equal.
    """

    def __init__(self, config: ColourHarmonyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1]; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images with a prompt each.
        """
        images = checked_images(images, prompts, where="reward 'colour-harmony'")
        with torch.autocast(images.device.type, enabled=False):
            hue, chroma = (each.flatten(1) for each in polar(to_lab(images)))
            angles = outside(hue, best_fit(hue, chroma, self.config.templates))
            return -(chroma * angles).mean(1) / chroma.mean(1).clamp(min=LEAST_CHROMA)
