"""Writes docs/reference/processors.md: which processors of transformers can be followed with a gradient.

Every image and video processor of the installed transformers is built with its defaults, and called with two images
of 64 x 48, or a video of four such frames, by `draft_core.rewards.images.through`.

    python benchmarks/processors.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from draft_core.errors import DraftError
from draft_core.rewards.images import through

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "processors.md"
HEAD = """# Image processors

[`through`](public-surface.md) runs an image or video processor of transformers on tensors, with a gradient, and gives
what the processor's own call gives for Pillow images. "Its own call" is that of the torchvision backend, the one that
`AutoProcessor` loads in transformers 5 and that inference with the model therefore uses. The slower Pillow backend
rounds otherwise, by one or two levels in up to 6 % of the values, and since Pillow 13 it may resize columns before
rows, which changes more: `through` refuses it by name.

What is refused is no fixed list: at the first call for each size of images, noise of that size goes through both ways,
and a processor whose values differ by more than 1e-6, or whose gradient is cut, is refused with the reason. The tables
say what that gave for the default settings of every processor, two images of 64 x 48 or a video of four such frames.
A processor that crops gives no gradient to what it cuts off.

`python benchmarks/processors.py` writes this page.
"""


def processors() -> Iterator[tuple[str, Any]]:
    """The name and class of every image and video processor, by name."""
    found = {}
    root = Path(transformers.__file__).parent
    for kind in ("image", "video"):
        for file in root.glob(f"models/*/{kind}_processing_*.py"):
            if file.parent.name == "auto":
                continue
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
            for name in getattr(module, "__all__", []):
                if name.endswith("Processor") and inspect.isclass(getattr(module, name)):
                    found[name] = getattr(module, name)
    yield from sorted(found.items())


def outcome(name: str, processor_class: Any) -> str:
    """An empty text if a processor can be followed, else why not."""
    try:
        processor = processor_class()
    except Exception as error:
        return f"cannot be built with its defaults ({type(error).__name__})"
    is_video = name.endswith("VideoProcessor")
    images = torch.rand(*((1, 4) if is_video else (2,)), 3, 64, 48)
    try:
        through(processor, images, **({"do_sample_frames": False} if is_video else {}))
    except DraftError as error:
        return _short(error.what)
    return ""


def _short(why: str) -> str:
    why = re.sub(r" \(/.*", "", why.removeprefix("cannot be followed with a gradient: "))
    return why if len(why) <= 150 else why[:147] + "..."


def main() -> None:
    """Writes the page."""
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    outcomes = {}
    for name, processor_class in processors():
        outcomes[name] = outcome(name, processor_class)
        print(name, outcomes[name], flush=True)
    followed = [name for name, why in outcomes.items() if not why]
    refused = {name: why for name, why in outcomes.items() if why}
    lines = [HEAD, f"transformers {transformers.__version__}: {len(followed)} of {len(outcomes)} can be followed.", ""]
    lines += ["## Refused", "", "| processor | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {why.replace('|', '/')} |" for name, why in refused.items()]
    lines += ["", "## Followed", "", ", ".join(f"`{name}`" for name in followed) + "."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
