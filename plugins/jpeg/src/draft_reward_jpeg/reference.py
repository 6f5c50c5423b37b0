"""What Pillow's own JPEG encoder and decoder say, to compare the rewards with: no arithmetic of ours, no gradient.

Nothing but `draft rewards compare` and the tests imports this.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from draft_reward_jpeg import JpegConfig, JpegDistortionConfig

Scorer = Callable[[list[Image.Image], list[str]], Tensor]


def file_size(reward: object, config: JpegConfig) -> Scorer:
    """Minus (compress) or plus (incompress) the kilobytes of the file that Pillow writes."""

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return _signed([len(_file(image, config)) / 1000 for image in images], config)

    return score


def distortion(reward: object, config: JpegDistortionConfig) -> Scorer:
    """Minus (compress) or plus (incompress) the squared distance to what Pillow reads from that file."""

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return _signed([_squared_distance(image, config) for image in images], config)

    return score


def _squared_distance(image: Image.Image, config: JpegDistortionConfig) -> float:
    with Image.open(io.BytesIO(_file(image, config))) as decoded:
        difference = np.asarray(image, dtype=np.float64) - np.asarray(decoded.convert("RGB"), dtype=np.float64)
    return float(np.square(difference / 255).sum())


def _file(image: Image.Image, config: JpegConfig | JpegDistortionConfig) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=config.quality, subsampling=config.subsampling)
    return file.getvalue()


def _signed(amounts: list[float], config: JpegConfig | JpegDistortionConfig) -> Tensor:
    sign = -1.0 if config.direction == "compress" else 1.0
    return sign * torch.tensor(amounts, dtype=torch.float64)
