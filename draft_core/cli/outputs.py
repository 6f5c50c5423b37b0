"""What commands write: tried before the work begins, and one sentence where it cannot be written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from draft_core.errors import DraftError

REMEDY = "name another place, or make room and see to its permissions"


def require_file(path: Path) -> None:
    """That a file can be written at `path`; its folder is made.

    Raises:
        DraftError: with the system's reason, where it cannot.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()


def require_image_file(path: Path, *, plays: bool = False) -> None:
    """That an image can be written at `path`, in the format that its ending names; with `plays` videos as .mp4 too.

    Raises:
        DraftError: where it cannot.
    """
    from PIL import Image

    if plays and path.suffix.lower() == ".mp4":
        from draft_core.reporting.image_grid import require_mp4

        require_mp4(path)
        require_file(path)
        return
    suffix = os.path.splitext(path)[1]  # as Pillow sees it: a name that begins with dots alone has none
    form = Image.registered_extensions().get(suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), form or suffix)
    except (OSError, ValueError, KeyError):
        ending = f"ending {suffix!r}" if suffix else "a name without an ending"
        raise DraftError(
            f"{ending} names no format of images", where=str(path), next="end it in .png or .jpg"
        ) from None
    require_file(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses inside becomes one sentence on `path`, or on the file in it that it was about.

    Raises:
        DraftError: instead of OSError and of what safetensors raises.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        place = getattr(error, "filename", None) or path
        raise DraftError(f"it cannot be written ({reason})", where=str(place), next=REMEDY) from error
