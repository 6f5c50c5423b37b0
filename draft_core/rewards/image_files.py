"""Image files as tensors: read it for what is done with depth, orientation, transparency and damage."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from draft_core.errors import DraftError, first_line

COLOUR = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # Pillow's modes of 8 bits
WHITE_16_BIT = 65535
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
ORIENTATION, LYING = 274, (5, 6, 7, 8)  # tag of EXIF, and its values for an image that lies on its side


def read_image(path: Path) -> torch.Tensor:
    """The image in a file as (1, 3, H, W) in [0, 1], upright as its EXIF data say; transparency is laid on white.

    Greys of 16 bits and floats keep their depth, other colours have 8 bits. Of an animation it is the first frame.

    Arguments:
        path: of a file in any format that Pillow reads.

    Raises:
        DraftError: if the file is missing, damaged, no image, too large for Pillow, or does not say what is white.
    """
    with _opened(path) as opened:
        opened.load()
        levels = _grey(opened, path) if opened.mode[0] in "IF" else _colour(opened, path)
    return torch.from_numpy(levels).permute(2, 0, 1)[None]


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the image that `read_image` gives, upright, from the head of its file.

    What can be found without decoding the image is checked: that it is one, and the checksums of a PNG.

    Raises:
        DraftError: as `read_image`.
    """
    with _opened(path) as opened:
        opened.verify()  # which closes the file
    with _opened(path) as opened:
        width, height = opened.size
        # Pillow turns the size of a TIFF itself, and decodes a PNG to look for EXIF data behind its pixels.
        turns = opened.format != "TIFF" and (opened.format != "PNG" or "exif" in opened.info)
        is_lying = turns and opened.getexif().get(ORIENTATION) in LYING
    return (width, height) if is_lying else (height, width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file as Pillow opens it, whose errors inside become sentences."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on damaged metadata and on sizes that it reads nevertheless
            with Image.open(path) as opened:
                yield opened
    except DraftError:
        raise
    except FileNotFoundError:
        raise DraftError("no such file", where=str(path), next="check the path") from None
    except Image.DecompressionBombError as error:
        raise DraftError(f"it has too many pixels ({first_line(error)})", where=str(path), next="reduce it") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DraftError(
            f"cannot be read as an image ({first_line(error)})",
            where=str(path),
            next="check that it opens elsewhere, and save it again as PNG or JPEG",
        ) from error


def _colour(opened: Image.Image, path: Path) -> np.ndarray[Any, Any]:
    """Levels (H, W, 3) float32 in [0, 1]."""
    if opened.mode not in COLOUR:
        raise DraftError(f"its colours are {opened.mode}", where=str(path), next="save it as RGB")
    image = ImageOps.exif_transpose(opened).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(flat).astype(np.float32) / np.float32(255)


def _grey(opened: Image.Image, path: Path) -> np.ndarray[Any, Any]:
    """Levels (H, W, 3) float32 in [0, 1] of a grey image with more than 8 bits."""
    tags = getattr(opened, "tag_v2", {})
    levels = np.asarray(ImageOps.exif_transpose(opened)).astype(np.float64)
    white = 1.0
    if opened.mode != "F":
        white = 2.0 ** tags[BITS_PER_SAMPLE][0] - 1 if BITS_PER_SAMPLE in tags else WHITE_16_BIT
    if white > WHITE_16_BIT or not (levels.min() >= 0 and levels.max() <= white):
        raise DraftError(
            f"its grey levels run from {levels.min():g} to {levels.max():g}, and it does not say which is white",
            where=str(path),
            next="save it with 8 or 16 bits, or with floats from 0 to 1",
        )
    levels = levels / white
    if tags.get(PHOTOMETRIC) == 0:
        levels = 1 - levels
    return np.repeat(levels.astype(np.float32)[..., None], 3, axis=2)
