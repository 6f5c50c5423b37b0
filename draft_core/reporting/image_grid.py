"""Images side by side: a grid as one image, or rows as data URIs that a page carries in itself."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from torch.nn.functional import interpolate

from draft_core.errors import DraftError
from draft_core.frames import FrameChoice
from draft_core.rewards.images import to_pil

CELL = 128  # side of an image in a grid, in pixels; small images are enlarged to it, large ones reduced
MARGIN = 8
GROUP_GAP = 3 * MARGIN  # between groups of columns, beside the margin
FONT_SIZE = 15

MOVING = (".gif", ".webp", ".mp4")  # what plays
STILLS = 4  # frames of a video that a still grid shows
FRAMES_PER_SECOND = 8
WATCHED = 16  # frames of a video that a run keeps

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


def cells(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) as they are; videos (N, T, 3, H, W) reduced to the cells of a grid where they are larger."""
    height, width = images.shape[-2:]
    side = max(height, width)
    if images.ndim == 4 or side <= CELL:
        return images
    small = (max(1, height * CELL // side), max(1, width * CELL // side))
    return interpolate(images.flatten(0, 1), small, mode="area").view(*images.shape[:3], *small)


def save_grid(
    rows: Sequence[tuple[str, Sequence[torch.Tensor]]], file: Path, *, headings: Sequence[str] = (), group: int = 0
) -> None:
    """Write a grid of images (3, H, W), or of videos (T, 3, H, W) in [0, 1], as `draw_grid` lays it out.

    A file that ends in .gif or .webp plays videos, and one in .mp4 by diffusers and imageio-ffmpeg; any other shows up
    to four frames of each, side by side.

    Raises:
        DraftError: for .mp4, if they are images, or imageio-ffmpeg is not installed.
    """
    suffix, shown = file.suffix.lower(), [image for _, images in rows for image in images]
    if shown[0].ndim == 3:
        if suffix == ".mp4":
            raise DraftError("the model makes images, no videos", where=str(file), next="end it in .png or .jpg")
        draw_grid(rows, headings=headings, group=group).save(file)
        return
    frames = shown[0].shape[0]
    if suffix not in MOVING:
        some = FrameChoice(min(frames, STILLS)).of(frames)
        still = [(label, [video[frame] for video in videos for frame in some]) for label, videos in rows]
        draw_grid(still, headings=headings, group=(group or 1) * len(some)).save(file)
        return
    drawn = []
    for frame in range(frames):
        of_frame = [(label, [video[frame] for video in videos]) for label, videos in rows]
        drawn.append(draw_grid(of_frame, headings=headings, group=group))
    if suffix == ".mp4":
        from diffusers.utils import export_to_video  # not before it is needed: it takes seconds

        require_mp4(file)
        even = [frame.crop((0, 0, frame.width - frame.width % 2, frame.height - frame.height % 2)) for frame in drawn]
        export_to_video(even, str(file), fps=FRAMES_PER_SECOND, macro_block_size=2)
        return
    save_gif(drawn, file)


def save_gif(frames: Sequence[Image.Image], file: Path | BinaryIO, form: str | None = None) -> None:
    """Frames of one size as a file that plays, over and over; in the format of the file's ending, or `form`."""
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)


def watchable(videos: torch.Tensor) -> torch.Tensor:
    """Videos (N, T, 3, H, W) with at most `WATCHED` of their frames, reduced as `cells` does: what a run keeps."""
    return cells(videos[:, list(FrameChoice(min(videos.shape[1], WATCHED)).of(videos.shape[1]))])


def require_mp4(file: Path) -> None:
    """That videos can be written as MP4.

    Raises:
        DraftError: if imageio-ffmpeg is not installed.
    """
    for package in ("imageio", "imageio_ffmpeg"):
        if importlib.util.find_spec(package) is None:
            raise DraftError(
                "MP4 is written by imageio and imageio-ffmpeg, which are not installed",
                where=str(file),
                next="run `pip install imageio imageio-ffmpeg`, or end it in .gif",
            )


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


def playing_uri(files: Sequence[Path]) -> str:
    """Videos of one length and size, from GIFs, side by side as one GIF in a data URI."""
    videos = []
    for file in files:
        with Image.open(file) as video:
            videos.append([frame.convert("RGB") for frame in ImageSequence.Iterator(video)])
    file_in_memory = io.BytesIO()
    save_gif([_beside(pieces) for pieces in zip(*videos, strict=True)], file_in_memory, "GIF")
    return data_uri(file_in_memory.getvalue(), "image/gif")


def _strip(images: Sequence[torch.Tensor], side: int) -> str:
    pieces = [to_pil(image) for image in images]
    lossless = max(max(image.size) for image in pieces) <= LOSSLESS
    if not lossless:
        for image in pieces:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = _beside(pieces)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True) if lossless else canvas.save(file, "JPEG", quality=QUALITY)
    return data_uri(file.getvalue(), "image/png" if lossless else "image/jpeg")


def _beside(pieces: Sequence[Image.Image]) -> Image.Image:
    gap = max(1, pieces[0].width // 32)
    width = sum(image.width for image in pieces) + gap * (len(pieces) - 1)
    canvas = Image.new("RGB", (width, max(image.height for image in pieces)), "white")
    x = 0
    for image in pieces:
        canvas.paste(image, (x, 0))
        x += image.width + gap
    return canvas


def data_uri(content: bytes, kind: str) -> str:
    """A file as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
