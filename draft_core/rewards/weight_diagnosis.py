"""What is wrong with a weight file: read it for the kinds of files that are taken for weights, and their remedies."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HEADER_LENGTH = 8  # bytes in which a safetensors file says how long its JSON header is
FORMATS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}


def is_safetensors(path: Path) -> bool:
    """Whether the content is that of a safetensors file, whatever its name.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(HEADER_LENGTH + 1)[HEADER_LENGTH:] == b"{"


def diagnosed(path: Path, error: BaseException) -> tuple[str, str] | None:
    """What a file is that cannot be read as weights, and what to do; None where it is of no known kind.

    Arguments:
        error: what the loader raised.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return None
    if not start:
        return "it is empty", "fetch the file again"
    if start == LFS_POINTER:
        return "it is a pointer of Git LFS, not the file", "run `git lfs pull` in its repository, or download the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not the file", "download the file itself, with `hf download` for example"
    if known := next((name for magic, name in FORMATS.items() if start.startswith(magic)), None):
        return f"it is {known}", "give a safetensors file, or tensors saved by torch"
    if _is_torchscript(path):
        remedy = f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
        return "it is a TorchScript archive, which holds code", f"save its tensors, `{remedy}`, and give that file"
    if "Unsupported global" in str(error):  # torch's words for what a pickle may not name
        remedy = "load it where you trust it, save the state_dict() of the model, and give that file"
        return "it holds Python objects, which are not executed", remedy
    return None


def nested(content: Mapping[object, object]) -> str | None:
    """The advice for a checkpoint whose tensors lie one level deeper; None where it is none such."""
    inner = [key for key, value in content.items() if isinstance(value, Mapping) and value]
    if not inner:
        return None
    keys = " or ".join(repr(key) for key in inner[:3])
    return f"its parts are mappings themselves: save the one with the weights alone, perhaps {keys}"


def prefix_advice(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What to do where most of the missing names are there behind a prefix, or without one; None where they are not."""
    for found, wanted, advice in (
        (unexpected, missing, "take {prefix!r} off the names of its tensors, and give that file"),
        (missing, unexpected, "put {prefix!r} before the names of its tensors, and give that file"),
    ):
        prefixes = Counter(name[:end] for name in found for end in _ends(name) if name[end:] in wanted)
        for prefix, count in prefixes.most_common(1):
            if 2 * count > len(missing):
                return advice.format(prefix=prefix)
    return None


def _ends(name: str) -> list[int]:
    """Where a prefix of a dotted name may end."""
    return [place + 1 for place, letter in enumerate(name) if letter == "."]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
