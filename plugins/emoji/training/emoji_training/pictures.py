"""Gets the emoji pictures from their registry packages and makes one array of them.

Each set comes as an npm package with a pinned version, fetched by `npm pack`, so whatever registry the
machine is configured for serves it. Everything ends as 64x64 RGB on white: the alpha channel of an emoji
carries no picture, and a diffusion model of this size has none to spare for it.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
PACKAGES = {  # name: (version, licence of the pictures or words)
    "emoji-datasource-google": ("16.0.0", "Apache-2.0"),
    "@lobehub/fluent-emoji-3d": ("1.1.0", "MIT"),
    "@iconify-json/fluent-emoji-flat": ("1.2.3", "MIT"),
    "emojibase-data": ("16.0.3", "MIT"),
}
STYLES = {
    "noto": "emoji-datasource-google",
    "3d": "@lobehub/fluent-emoji-3d",
    "flat": "@iconify-json/fluent-emoji-flat",
}
UNUSED_GROUPS = {2, 9}  # emojibase: 2 holds hair and skin components, 9 the flags
CONCEPTS = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True)
class Picture:
    """What is known of one picture: the CLDR label and tags, the style, and its concept (-1: none)."""

    code: str
    label: str
    phrase: str
    tags: tuple[str, ...]
    style: str
    concept: int
    mirror: bool


def prepare(work: Path) -> None:
    """Write `pictures.npy` (uint8 (N, 64, 64, 3)) and `pictures.json` under work/data."""
    folder = work / "data"
    archives = {name: fetch(name, folder / "packages") for name in PACKAGES}
    emoji = [e for e in read_labels(archives["emojibase-data"]) if e.get("group", 2) not in UNUSED_GROUPS]
    concepts = read_concepts()
    unknown = set(concepts) - {e["label"] for e in emoji}
    if unknown:
        raise ValueError(f"{CONCEPTS}: no emoji has the label {sorted(unknown)}; correct the spelling")
    images, meta = [], []
    for style, package in STYLES.items():
        by_code = dict(READERS[style](archives[package]))
        for e in emoji:
            image = by_code.get(bare(e["hexcode"]))
            if image is None:
                continue
            number, phrase, mirror = concepts.get(e["label"], (-1, with_article(e["label"]), True))
            tags = tuple(e.get("tags", ()))
            images.append(np.asarray(image))
            meta.append(asdict(Picture(bare(e["hexcode"]), e["label"], phrase, tags, style, number, mirror)))
    np.save(folder / "pictures.npy", np.stack(images))
    (folder / "pictures.json").write_text(json.dumps(meta), encoding="utf-8")
    drawn = [m for m in meta if m["concept"] >= 0]
    print(f"data: {len(meta)} pictures, of which {len(drawn)} show one of {len(concepts)} concepts", flush=True)


def load(work: Path) -> tuple[np.ndarray, list[Picture]]:
    """The pictures (uint8 (N, 64, 64, 3)) and what is known of each, as `prepare` left them."""
    images = np.load(work / "data" / "pictures.npy")
    meta = json.loads((work / "data" / "pictures.json").read_text(encoding="utf-8"))
    return images, [Picture(**{**m, "tags": tuple(m["tags"])}) for m in meta]


def read_concepts(path: Path = CONCEPTS) -> dict[str, tuple[int, str, bool]]:
    """Label -> (number, words of the caption, whether a mirrored picture still shows it)."""
    found: dict[str, tuple[int, str, bool]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        text, mirror = (line[:-1].strip(), False) if line.endswith("!") else (line.strip(), True)
        label, _, phrase = (part.strip() for part in text.partition("="))
        found[label] = (len(found), phrase or with_article(label), mirror)
    return found


def phrases() -> list[str]:
    """The words of every concept's caption, by its number."""
    return [phrase for _, phrase, _ in read_concepts().values()]


def with_article(label: str) -> str:
    """The label after "a" or "an"."""
    return f"{'an' if label[0].lower() in 'aeio' else 'a'} {label}"


def fetch(name: str, folder: Path) -> Path:
    """Path of the package's archive, downloaded by npm unless it is there."""
    version, _ = PACKAGES[name]
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=folder, check=True)
    return archive


def bare(hexcode: str) -> str:
    """The code points without the variation selector, which the sources use inconsistently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def on_white(image: Image.Image) -> Image.Image:
    """RGB of 64x64; composited before it is scaled, so that no dark fringe stays."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB")
    return flat if flat.size == (SIZE, SIZE) else flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def read_labels(archive: Path) -> list[dict]:
    """The emoji of emojibase: dictionaries with hexcode, label, tags and group."""
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile("package/en/data.json"))  # type: ignore[arg-type]


def read_folder(archive: Path, prefix: str) -> Iterator[tuple[str, Image.Image]]:
    """Pairs of code and picture, one for each image file under the prefix."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix):
                image = Image.open(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
                yield bare(Path(member.name).stem), on_white(image)


def read_svg(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """Pairs of code and picture, rendered from an icon set in iconify format."""
    import resvg_py

    with tarfile.open(archive) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))  # type: ignore[arg-type]
        chars = json.load(tar.extractfile("package/chars.json"))  # type: ignore[arg-type]
    side = icons.get("width", 32)
    for code, name in chars.items():
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {side} {side}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
        yield bare(code), on_white(Image.open(io.BytesIO(png)))


READERS = {
    "noto": lambda archive: read_folder(archive, "package/img/google/64/"),
    "3d": lambda archive: read_folder(archive, "package/assets/"),
    "flat": read_svg,
}
