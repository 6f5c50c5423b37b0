"""Image files as people have them: depth, orientation, transparency and damage, against what was written into them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from draft_core.errors import DraftError
from draft_core.rewards.image_files import image_size, read_image
from draft_core.rewards.images import to_pil

RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def grey(path: Path) -> np.ndarray:
    """What is read, (6, 8), the same in all three channels."""
    image = read_image(path)
    assert image.shape == (1, 3, 6, 8)
    assert image.dtype == torch.float32
    assert torch.equal(image[0, 0], image[0, 1])
    assert torch.equal(image[0, 0], image[0, 2])
    return image[0, 0].numpy()


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert image.shape == (1, 3, 9, 13)
    assert np.array_equal(np.asarray(to_pil(image[0])), levels)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").min() == 1.0


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm", "grey.jp2"])
def test_grey_of_16_bits_keeps_its_levels(tmp_path: Path, name: str) -> None:
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(tmp_path / name)
    np.testing.assert_allclose(grey(tmp_path / name), RAMP, atol=1e-5)


def test_grey_whose_zero_is_white_is_turned(tmp_path: Path) -> None:
    image = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    image.save(tmp_path / "grey.tiff", tiffinfo={262: 0})
    np.testing.assert_allclose(grey(tmp_path / "grey.tiff"), 1 - RAMP, atol=1e-5)


def test_floats_from_0_to_1_are_taken(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "grey.tiff")
    np.testing.assert_allclose(grey(tmp_path / "grey.tiff"), RAMP, atol=1e-6)


@pytest.mark.parametrize(
    "levels",
    [
        (RAMP * 255).astype(np.float32),
        (RAMP * 2 - 1).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        (RAMP * 70000).astype(np.int32),
    ],
    ids=["floats to 255", "floats from -1", "NaN", "32 bits"],
)
def test_levels_without_a_white_are_refused(tmp_path: Path, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(tmp_path / "grey.tiff")
    with pytest.raises(DraftError, match=r"grey levels run from .* does not say which is white; save it with"):
        read_image(tmp_path / "grey.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_other_colours_of_8_bits_are_those_of_pillow(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "image.tiff")
    assert read_image(tmp_path / "image.tiff").min() == 1.0


def test_colours_that_pillow_cannot_convert_are_refused(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4), (100, 20, 30)).save(tmp_path / "image.tiff")
    with pytest.raises(DraftError, match=r"image.tiff: its colours are LAB; save it as RGB"):
        read_image(tmp_path / "image.tiff")


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_an_image_stands_as_its_camera_was_held(tmp_path: Path, mode: str) -> None:
    """Orientation 6 says: turn it clockwise to show it."""
    image = Image.new(mode, (5, 3))
    image.putpixel((0, 0), (255, 255, 255) if mode == "RGB" else 65535)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    assert found.shape == (1, 3, 5, 3)
    assert found[0, 0].nonzero().tolist() == [[0, 2]]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HEADER = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
START = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")
DATA = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "text": b"no image",
        "signature alone": START,
        "short header": START + chunk(b"IHDR", HEADER[:5]) + DATA + END,
        "wrong checksum": START + chunk(b"IHDR", HEADER)[:-1] + b"x" + DATA + END,
        "no data": START + chunk(b"IHDR", HEADER) + END,
        "torn data": START + chunk(b"IHDR", HEADER) + chunk(b"IDAT", zlib.compress(bytes(4 * 13))[:7]) + END,
        "data that is none": START + chunk(b"IHDR", HEADER) + chunk(b"IDAT", b"\xff" * 20) + END,
        "unknown depth": START + chunk(b"IHDR", HEADER[:8] + b"\x07" + HEADER[9:]) + DATA + END,
        "nonsense between": START + chunk(b"IHDR", HEADER) + b"\0\0\0\x04\0\0\0\0" + DATA + END,
        "a text that swells": START
        + chunk(b"IHDR", HEADER)
        + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24)))
        + DATA,
    }.values(),
)
def test_a_broken_png_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(
        DraftError, match=r"broken.png: cannot be read as an image \(.+\); check that it opens elsewhere"
    ):
        read_image(tmp_path / "broken.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(START + chunk(b"IHDR", header) + DATA + END)
    with pytest.raises(DraftError, match=r"bomb.png: it has too many pixels \(.+\); reduce it"):
        read_image(tmp_path / "bomb.png")


def test_an_image_that_pillow_only_warns_of_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (12, 12)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "large.png").shape == (1, 3, 12, 12)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"none.png: no such file; check the path"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DraftError, match=r"cannot be read as an image \(.*directory"):
        read_image(tmp_path)


def test_a_size_is_that_of_the_image_that_is_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((9, 13, 3), dtype=np.uint8))
    lying = Image.Exif()
    lying[274] = 6
    image.save(tmp_path / "upright.png")
    for name in ("lying.png", "lying.jpg", "lying.tif"):
        image.save(tmp_path / name, exif=lying)
    for file in tmp_path.iterdir():
        assert image_size(file) == tuple(read_image(file).shape[-2:]), file.name
    assert image_size(tmp_path / "lying.jpg") == (13, 9)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_size_of_no_image_is_refused_as_the_image_is(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(np.zeros((9, 13, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    with pytest.raises(DraftError, match=r"image.png: cannot be read as an image"):
        image_size(file)
    with pytest.raises(DraftError, match=r"gone.png: no such file"):
        image_size(tmp_path / "gone.png")
