"""How results look in a notebook, which asks objects for HTML by `_repr_html_`: tables and images; no torch."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

SIDE = 192  # pixels of an image in a gallery: small ones are enlarged by whole numbers, large ones reduced
MOST = 64  # images and rows that are shown; of further ones the number is


@dataclass(frozen=True)
class Picture:
    """An image that a notebook shows, in PNG.

    Arguments:
        png: the file's bytes.
    """

    png: bytes = field(repr=False)

    def save(self, path: Path | str) -> None:
        """Writes the PNG to `path`."""
        Path(path).write_bytes(self.png)

    def _repr_png_(self) -> bytes:
        return self.png


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; numbers are written in four digits, and everything else as its text, escaped."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows[:MOST])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{_rest(len(rows))}"


def paragraph(text: str) -> str:
    """A text in HTML."""
    return f"<p>{html.escape(text)}</p>"


def image(shown: Picture, caption: str) -> str:
    """An image in HTML that carries it in itself."""
    return f'<img src="{_data_uri(shown.png)}" alt="{html.escape(caption)}">'


def gallery(images: Sequence[Image.Image], captions: Sequence[str], *, of: int) -> str:
    """Images side by side in HTML, each above its caption; the HTML carries them in itself.

    Arguments:
        images: at most `MOST` of them.
        captions: one for each image; further ones are left out.
        of: how many images there are.
    """
    shown = zip(images, captions, strict=False)
    figures = "".join(
        f'<figure style="margin:4px;width:{SIDE}px"><img src="{_uri(image)}" alt="{html.escape(caption)}">'
        f'<figcaption style="font-size:80%">{html.escape(caption)}</figcaption></figure>'
        for image, caption in shown
    )
    return f'<div style="display:flex;flex-wrap:wrap">{figures}</div>{_rest(of)}'


def _cell(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _rest(count: int) -> str:
    return f"<p>and {count - MOST} more</p>" if count > MOST else ""


def _uri(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    scale = max(1, SIDE // max(shown.size))
    shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
    file = io.BytesIO()
    shown.save(file, "PNG")
    return _data_uri(file.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
