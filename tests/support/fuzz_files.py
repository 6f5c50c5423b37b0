"""A folder of good files of every kind that a command reads, and ways to spoil one of them."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from draft_core.recipe.yaml_text import dump_yaml, parse_yaml
from tests.support.mutations import FULL, NUMBERS, RAW, TEXTS, VALUES, places
from tests.support.runs import made_run, saved_lora

LORA = "pytorch_lora_weights.safetensors"
PROMPTS = ("list.txt", "list.csv", "list.tsv", "list.json", "list.jsonl")
IMAGES = ("rgb.png", "grey16.png", "rgba.png", "palette.gif", "photo.jpg", "cmyk.jpg", "float.tiff", "still.webp")
LORAS = ("one", "other", "one.safetensors", "comfy.safetensors")
RUNS = ("run", "run2")
RECIPES = ("recipe.yaml",)


def make_files(folder: Path) -> None:
    """All of the above, each as its program would have written it."""
    texts = ["a cat", "a red dog, running", 'a "hat"']
    contents = {
        "list.txt": "\n".join(texts) + "\n",
        "list.csv": 'prompt,seed\na cat,1\n"a red dog, running",2\n',
        "list.tsv": "Prompt\tCategory\na cat\tAnimals\na red dog\tAnimals\n",
        "list.json": json.dumps([{"prompt": text} for text in texts]),
        "list.jsonl": "".join(json.dumps({"prompt": text}) + "\n" for text in texts),
        "recipe.yaml": dump_yaml({**FULL, "output": "trained"}),
    }
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    levels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    colour = Image.fromarray(levels)
    colour.save(folder / "rgb.png")
    colour.convert("RGBA").save(folder / "rgba.png")
    colour.convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    colour.save(folder / "photo.jpg", exif=exif)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.save(folder / "still.webp")
    Image.fromarray(levels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    Image.fromarray(levels[..., 0].astype(np.float32) / 255).save(folder / "float.tiff")
    saved_lora(folder / "one", seed=1)
    saved_lora(folder / "other", seed=2, rank=3, alpha=1.0)
    shutil.copy(folder / "one" / LORA, folder / "one.safetensors")
    comfy = {
        key.replace("unet.", "lora_unet_", 1).replace("lora_A", "lora_down").replace("lora_B", "lora_up"): weight
        for key, weight in load_file(folder / "one" / LORA).items()
    }
    save_file(comfy, folder / "comfy.safetensors")
    for name, last in (("run", 0.5), ("run2", 0.2)):
        made_run(folder / name, {"redness": [0.1, last]}, trained={"redness": 1.0}, prompts=("a bird", "a cat"))


# Ways to spoil a file: each takes a source of randomness and the path, and says in a word what it did.

Spoil = Callable[[Random, Path], str]


def cut(rng: Random, path: Path) -> str:
    content = path.read_bytes()
    kept = rng.choice([0, 1, 8, len(content) // 2, max(0, len(content) - 1), rng.randrange(len(content) + 1)])
    path.write_bytes(content[:kept])
    return f"cut after {kept} bytes"


def flip(rng: Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 30])):
        if content:
            content[rng.randrange(min(len(content), rng.choice([16, 400, len(content)])))] = rng.randrange(256)
    path.write_bytes(content)
    return "flipped bytes"


def insert(rng: Random, path: Path) -> str:
    content = path.read_bytes()
    at = rng.choice([0, len(content), rng.randrange(len(content) + 1)])
    piece = rng.choice(
        [b"\xef\xbb\xbf", b"\0", b"\r\n", b"\xff\xfe", b"{", b"\t", "\u2028".encode(), b"\x1b[31m", b","]
    )
    path.write_bytes(content[:at] + piece + content[at:])
    return f"inserted {piece!r}"


def replace(rng: Random, path: Path) -> str:
    what: tuple[str, bytes] = rng.choice(
        [
            ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"),
            ("a page", b"<!doctype html><title>404</title>"),
            ("zeros", bytes(64)),
            ("UTF-16", "a cat\na dog\n".encode("utf-16")),
            ("an archive", b"PK\x03\x04" + bytes(40)),
            ("a pickle", b"\x80\x04\x95\x0c"),
            ("Latin-1", "caf\xe9\n".encode("latin-1")),
            ("blank lines", b"\n \n\t\n"),
            ("brackets", b"[" * 3000),
        ]
    )
    path.write_bytes(what[1])
    return f"replaced by {what[0]}"


def another(rng: Random, path: Path) -> str:
    """The content of a file of another kind."""
    others = [item for item in sorted(path.parent.iterdir()) if item.is_file() and item != path]
    if not others:
        return cut(rng, path)
    other = rng.choice(others)
    shutil.copy(other, path)
    return f"replaced by {other.name}"


def vanish(rng: Random, path: Path) -> str:
    path.unlink()
    kind = rng.choice(["gone", "folder", "dangling link", "link to itself"])
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    return kind


def image(rng: Random, path: Path) -> str:
    """Another size or mode, or a header that promises what is not there."""
    kind = rng.choice(["size", "size", "mode", "bomb", "orientation", "empty strip"])
    if kind == "bomb":
        header = struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(4))
        return "a header of 60000 x 60000"
    width, height = rng.choice([(1, 1), (1, 40), (40, 1), (400, 3), (3, 400), (64, 64)])
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
    made = Image.new("RGB" if kind == "size" else mode, (width, height))
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 2, 5, 8, 9, 70000])
    try:
        made.save(path, exif=exif.tobytes())
    except (OSError, ValueError, KeyError, struct.error):
        made.convert("RGB").convert("P" if path.suffix == ".gif" else "RGB").save(path)
    return f"{made.mode}, {width} x {height}"


def lora(rng: Random, path: Path) -> str:
    """Weights with other names, shapes, values or settings."""
    weights = load_file(path)
    name = rng.choice(sorted(weights))
    kind = rng.choice(
        ["nan", "inf", "drop", "shape", "turn", "prefix", "integer", "half", "alpha", "all zero", "none", "metadata"]
    )
    metadata = None
    if kind in ("nan", "inf"):
        weights[name].view(-1)[0] = float(kind)
    elif kind == "drop":
        del weights[name]
    elif kind == "shape":
        weights[name] = torch.zeros(rng.choice([(), (0,), (3,), (2, 2), (1, 1, 1, 1, 1), (0, 5)]))
    elif kind == "turn":
        weights[name] = weights[name].transpose(0, 1).contiguous()
    elif kind == "prefix":
        prefix = rng.choice(["module.", "model.", "transformer.", "text_encoder.", "", "unet.unet."])
        weights = {prefix + key.removeprefix("unet."): weight for key, weight in weights.items()}
    elif kind == "integer":
        weights[name] = weights[name].to(rng.choice([torch.int64, torch.int8, torch.bool]))
    elif kind == "half":
        weights = {key: weight.to(rng.choice([torch.float16, torch.bfloat16])) for key, weight in weights.items()}
    elif kind == "alpha":
        weights[name.rpartition(".lora")[0] + ".alpha"] = torch.tensor(rng.choice([0.0, -1.0, float("nan"), 1e38]))
    elif kind == "all zero":
        weights = {key: torch.zeros_like(weight) for key, weight in weights.items()}
    elif kind == "none":
        weights = {}
    else:
        metadata = {"lora_adapter_metadata": rng.choice(["", "{", "[]", "null", '{"unet.r": "x"}', '{"unet.r": -1}'])}
    save_file(weights, path, metadata=metadata)
    return f"weights: {kind}"


def values(rng: Random, path: Path) -> str:
    """Values of a JSON, JSON-lines or YAML file: replaced, dropped, wrapped, added."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    if path.suffix == ".yaml":
        data = parse_yaml(text)
        said = [_spoiled(rng, data) for _ in range(rng.choice([1, 1, 2]))]
        out = _as_text(data)
        if rng.random() < 0.3:
            rows = out.splitlines(keepends=True) or [""]
            at = rng.randrange(len(rows))
            rows[at] = rows[at].partition(":")[0] + ": " + rng.choice(RAW) + "\n"
            out = "".join(rows)
        path.write_text(out, encoding="utf-8", errors="surrogatepass")
        return "; ".join(said)
    at = rng.randrange(len(lines)) if path.suffix == ".jsonl" else 0
    data = [json.loads(lines[at] if path.suffix == ".jsonl" else text)]
    said = [_spoiled(rng, data)]
    dumped = "\n".join(json.dumps(item, default=str) for item in data)
    if path.suffix == ".jsonl":
        lines[at] = dumped + "\n"
        dumped = "".join(rng.choice([lines, lines, lines[:at], lines[::-1], lines + lines]))
    path.write_text(dumped, encoding="utf-8", errors="surrogatepass")
    return said[0]


def _as_text(data: Any) -> str:
    try:
        return dump_yaml(data)
    except Exception:  # of another kind than YAML says
        return json.dumps(data, default=str)


def _spoiled(rng: Random, data: Any) -> str:
    """Changes one value inside `data` and says which."""
    spots = sorted(places(data), key=repr)
    if not spots:
        return "nothing left"
    *parents, last = rng.choice(spots)
    parent = data
    for key in parents:
        parent = parent[key]
    where = ".".join(map(str, (*parents, last)))
    change = rng.choice(["drop", "number", "text", "junk", "wrap", "rename", "add"])
    if change == "drop":
        del parent[last]
    elif change == "number":
        parent[last] = rng.choice(NUMBERS)
    elif change == "text":
        parent[last] = rng.choice(TEXTS)
    elif change == "wrap":
        parent[last] = rng.choice([[parent[last]], {"a": copy.deepcopy(parent[last])}, [parent[last]] * 3])
    elif change == "rename" and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = parent.pop(last)
    elif change == "add" and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = rng.choice(NUMBERS)
    else:
        parent[last] = rng.choice([None, True, [], {}, [[]], {"a": [1]}, "a\nb"])
    return f"{where}: {change}"


def override(rng: Random) -> str:
    """A `--set` of a recipe: a value that it may hold, or any."""
    if rng.random() < 0.5:
        field = rng.choice(sorted(VALUES))
        return f"{field}={json.dumps(rng.choice(VALUES[field]))}"
    field = rng.choice([".".join(map(str, path)) for path in places(FULL)])
    return f"{field}={rng.choice([*RAW, *TEXTS, *map(str, NUMBERS)])}"


ANY: Sequence[Spoil] = (cut, flip, insert, replace, another, vanish)


def spoil(rng: Random, folder: Path, name: str) -> str:
    """Spoils the file, or a file of the folder, of that name; says which and how."""
    path = folder / name
    if path.is_dir():
        path = rng.choice([item for item in sorted(path.rglob("*")) if item.is_file()])
    special: list[Spoil] = []
    if path.suffix in (".png", ".gif", ".jpg", ".tiff", ".webp"):
        special = [image]
    elif path.suffix == ".safetensors":
        special = [lora]
    elif path.suffix in (".json", ".jsonl", ".yaml"):
        special = [values]
    way = rng.choice([*ANY, *special * 5])
    return f"{path.relative_to(folder)}: {way(rng, path)}"
