"""Images side by side: a grid as one image, or rows as data URIs that a page carries in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont

from draft_core.rewards.images import to_pil

CELL = 128  # side of an image in a grid, in pixels; small images are enlarged to it, large ones reduced
MARGIN = 8
GROUP_GAP = 3 * MARGIN  # between groups of columns, beside the margin
FONT_SIZE = 15

LOSSLESS = 128  # images with no side longer than this stay PNG, pixel by pixel
SIDES = (384, 256, 192, 128)  # what larger ones are reduced to, the first that fits a page
QUALITY = 85  # of their JPEG

Key = TypeVar("Key", bound=Hashable)


def draw_grid(
    rows: Sequence[tuple[str, Sequence[torch.Tensor]]], *, headings: Sequence[str] = (), group: int = 0
) -> Image.Image:
    """Rows of images (3, H, W) in [0, 1] with a label on the left.

    Arguments:
        headings: over the groups, or over the columns where there are no groups; none leaves no room for them.
        group: a wider gap follows every `group` columns; 0 for none.
    """
    font = ImageFont.load_default(FONT_SIZE)
    label_width = max((int(font.getlength(line)) for label, _ in rows for line in _wrapped(label)), default=0)
    left = label_width + 2 * MARGIN
    top = MARGIN + (FONT_SIZE + MARGIN if headings else 0)
    columns = max(len(images) for _, images in rows)
    step = CELL + MARGIN

    def x(column: int) -> int:
        return left + column * step + (GROUP_GAP * (column // group) if group else 0)

    canvas = Image.new("RGB", (x(columns - 1) + step, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(canvas)
    for number, heading in enumerate(headings):
        draw.text((x(number * (group or 1)), MARGIN), heading, fill="black", font=font)
    for row, (label, images) in enumerate(rows):
        y = top + row * step
        draw.multiline_text((MARGIN, y + CELL // 3), "\n".join(_wrapped(label)), fill="black", font=font)
        for column, image in enumerate(images):
            cell = to_pil(image)
            cell.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
            scale = max(1, CELL // max(cell.size))
            cell = cell.resize((cell.width * scale, cell.height * scale), Image.Resampling.NEAREST)
            canvas.paste(cell, (x(column), y))
            draw.rectangle((x(column) - 1, y - 1, x(column) + CELL, y + CELL), outline="#dddddd")
    return canvas


def _wrapped(label: str, width: int = 26) -> list[str]:
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:4]


def strip_uris(rows: Mapping[Key, Sequence[torch.Tensor]], *, budget: int) -> dict[Key, str]:
    """Each row of images (3, H, W) in [0, 1] as one image in a data URI.

    Small images stay as they are; large ones are reduced until all of them fit.

    Arguments:
        budget: bytes that all URIs may take; exceeded only where the smallest size does not fit it.
    """
    encoded: dict[Key, str] = {}
    for side in SIDES:
        encoded = {key: _strip(images, side) for key, images in rows.items()}
        if sum(map(len, encoded.values())) <= budget:
            break
    return encoded


def _strip(images: Sequence[torch.Tensor], side: int) -> str:
    pieces = [to_pil(image) for image in images]
    lossless = max(max(image.size) for image in pieces) <= LOSSLESS
    if not lossless:
        for image in pieces:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
    gap = max(1, pieces[0].width // 32)
    width = sum(image.width for image in pieces) + gap * (len(pieces) - 1)
    canvas = Image.new("RGB", (width, max(image.height for image in pieces)), "white")
    x = 0
    for image in pieces:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True) if lossless else canvas.save(file, "JPEG", quality=QUALITY)
    return data_uri(file.getvalue(), "image/png" if lossless else "image/jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """A file as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
