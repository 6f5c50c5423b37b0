"""Images and the judges we did not write: Pillow's encoder, and photographs that two wheels carry."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "china.jpg", "flower.jpg")
GREY = ("camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    skimage = pytest.importorskip("skimage", reason="scikit-image is missing: its wheel carries the photographs")
    sklearn = pytest.importorskip("sklearn", reason="scikit-learn is missing: its wheel carries the photographs")
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    paths = [folder / name for name in (*COLOUR, *GREY) for folder in folders if (folder / name).exists()]
    assert len(paths) == len(COLOUR) + len(GREY)
    return {path.stem: Image.open(path).convert("RGB") for path in paths}


@pytest.fixture(scope="session")
def square(photographs) -> Callable[[str, int], np.ndarray]:
    """The central square of a photograph, resized: (size, size, 3) uint8."""

    def resized(name: str, size: int) -> np.ndarray:
        photograph = photographs[name]
        side = min(photograph.size)
        left, top = ((length - side) // 2 for length in photograph.size)
        box = (left, top, left + side, top + side)
        return np.array(photograph.resize((size, size), Image.Resampling.BICUBIC, box=box))

    return resized


@pytest.fixture(scope="session")
def drawn() -> Callable[..., np.ndarray]:
    """A image made by hand, (height, width, 3) uint8: waves of rising frequency, edges and some noise."""

    def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width].astype(float)
        waves = [np.sin(x * x * rng.uniform(0.001, 0.01) + y * rng.uniform(0.02, 0.5)) for _ in range(3)]
        edges = 40.0 * ((x // 11 + y // 7) % 2)[..., None]
        pixels = 110 + 60 * np.stack(waves, axis=-1) + edges + rng.normal(0, 6, (height, width, 3))
        return pixels.round().clip(0, 255).astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def as_tensor() -> Callable[..., torch.Tensor]:
    """Images (H, W, 3) uint8 of one size -> images (B, 3, H, W) float32 in [0, 1]."""

    def convert(*images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255

    return convert


@pytest.fixture(scope="session")
def pillow_file() -> Callable[..., bytes]:
    """The file that Pillow writes, called here and not through the package under test."""
    if not features.check_feature("libjpeg_turbo"):
        pytest.skip("Pillow is built without libjpeg-turbo: another encoder rounds in other ways")

    def write(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
        return file.getvalue()

    return write


@pytest.fixture(scope="session")
def scan_bytes(pillow_file) -> Callable[..., int]:
    """Bytes of entropy-coded data in Pillow's file, without the stuffed zeros."""

    def count(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> int:
        file = pillow_file(image, quality, subsampling)
        start = file.index(b"\xff\xda")
        start += 2 + int.from_bytes(file[start + 2 : start + 4], "big")
        scan = file[start:-2]
        return len(scan) - scan.count(b"\xff\x00")

    return count
