"""The three JPEG rewards: file size with a gradient, distortion with a gradient, and the real file's size."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from draft_core.rewards import FrozenModule, checked_images
from draft_reward_jpeg import JpegConfig, JpegDistortionConfig, JpegSizeConfig
from draft_reward_jpeg.entropy import count_bits, crossings, scan_order, stored_numbers
from draft_reward_jpeg.tables import HEADER_BYTES
from draft_reward_jpeg.transform import CHROMA_FACTORS, Components, coefficients, decode

BYTES_PER_KB = 1000

# A byte 0xFF of the scan is followed by a stuffed 0x00. Which bytes come out as 0xFF depends on how the
# codes fall; on photographs 0.2 to 0.5 % do, and this mean is the only number fitted to files.
STUFFED_SHARE = 0.003


class _JpegScore(FrozenModule, ABC):
    """An amount per image in float32, negated where the config says compress. Holds no weights."""

    def __init__(self, config: JpegConfig | JpegDistortionConfig | JpegSizeConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1], NaN if one is not finite; prompts are not read.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images with a prompt each.
        """
        images = checked_images(images, prompts, where=f"reward {self.config.kind!r}")
        with torch.autocast(images.device.type, enabled=False):
            amount = self.amount(images.nan_to_num())
        # Rounded to integers, a broken image would pass for a file, perhaps a small one.
        amount = amount.where(images.isfinite().flatten(1).all(1), math.nan)
        return -amount if self.config.direction == "compress" else amount

    @abstractmethod
    def amount(self, images: Tensor) -> Tensor:
        """What there is less of in a more compressible image, (B,), for images (B, 3, H, W) float32."""


class JpegReward(_JpegScore):
    """Minus (compress) or plus (incompress) the size in kB of each image's JPEG file, differentiable.

    The value is the exact number of Huffman-coded bits, the header, and an expected share of stuffed bytes:
    within about 0.2 % of the file that Pillow writes with the same settings. The gradient is that of
    `entropy.Crossings.expected_bits` at the encoder's coefficients, through the linear part of the encoder,
    and sees only what would improve the score: so the two directions have different gradients.
    """

    def amount(self, images: Tensor) -> Tensor:
        """Estimated file sizes (B,) in kB."""
        return estimate_kilobytes(images, self.config.quality, self.config.subsampling, self.config.direction)


class JpegDistortionReward(_JpegScore):
    """Minus (compress) or plus (incompress) the squared error of each image after JPEG, differentiable.

    ||x - jpeg(x)||^2, summed over the pixels in [0, 1]: the simplest stand-in for compressibility. It follows
    the file size poorly, and is here to be compared with.
    """

    def amount(self, images: Tensor) -> Tensor:
        """Squared distances (B,) between images and what a decoder shows of their files."""
        decoded = jpeg_roundtrip(images, self.config.quality, self.config.subsampling)
        return (images - decoded).square().flatten(1).sum(1)


class JpegSizeReward(_JpegScore):
    """Minus (compress) or plus (incompress) the size in kB of the file that Pillow writes; no gradient."""

    def amount(self, images: Tensor) -> Tensor:
        """Real file sizes (B,) in kB."""
        pixels = (images.detach() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        sizes = [len(encode(each, self.config.quality, self.config.subsampling)) for each in pixels]
        return torch.tensor(sizes, dtype=torch.float32, device=images.device) / BYTES_PER_KB


def estimate_kilobytes(images: Tensor, quality: int, subsampling: str, direction: str = "compress") -> Tensor:
    """File sizes (B,) of images (B, 3, H, W) in [0, 1], in units of 1000 bytes, with a gradient.

    The gradient looks only at the thresholds beyond which the file shrinks (compress) or grows (incompress):
    staying away from the others would spend a tenth of what can be reached.
    """
    height, width = images.shape[-2:]
    bits = expected = images.new_zeros(images.shape[0])
    for component, part in enumerate(coefficients(images, quality, subsampling)):
        scan = scan_order(component, height, width, CHROMA_FACTORS[subsampling], images.device)
        numbers = stored_numbers(part.levels, scan)
        bits = bits + count_bits(numbers, scan, component)
        if part.values.requires_grad:
            at_stake = crossings(numbers, part.steps, component)
            at_stake = at_stake.only_savings() if direction == "compress" else at_stake.only_costs()
            expected = expected + at_stake.expected_bits(stored_numbers(part.values, scan).abs())
    scan_bytes = torch.ceil(bits / 8) + (expected - expected.detach()) / 8
    return (HEADER_BYTES + scan_bytes * (1 + STUFFED_SHARE)) / BYTES_PER_KB


def jpeg_roundtrip(images: Tensor, quality: int, subsampling: str) -> Tensor:
    """What a decoder shows of the images' files, (B, 3, H, W), unrounded and unclamped.

    Coefficients are rounded as the encoder does; backwards the rounding acts as round(u) + (u - round(u))^3
    (Shin and Song 2017, "JPEG-resistant Adversarial Images").
    """
    height, width = images.shape[-2:]
    stored = []
    for part in coefficients(images, quality, subsampling):
        rest = (part.values / part.steps - part.levels) ** 3
        stored.append((part.levels + rest - rest.detach()) * part.steps)
    return decode(Components(*stored), quality, subsampling, height, width)


def encode(pixels: npt.NDArray[np.uint8], quality: int, subsampling: str) -> bytes:
    """The JPEG file that Pillow writes for pixels (H, W, 3) uint8, without metadata."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()
