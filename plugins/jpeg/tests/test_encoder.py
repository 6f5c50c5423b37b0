"""The encoder's front half and its bit count, against Pillow's files and scipy's transform."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from draft_reward_jpeg import entropy, tables, transform
from draft_reward_jpeg.entropy import count_bits, crossings, scan_order, stored_numbers
from draft_reward_jpeg.reward import jpeg_roundtrip
from draft_reward_jpeg.transform import CHROMA_FACTORS, coefficients
from PIL import Image

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def counted_bytes(images: torch.Tensor, quality: int, subsampling: str) -> list[int]:
    height, width = images.shape[-2:]
    bits = torch.zeros(len(images))
    for component, part in enumerate(coefficients(images, quality, subsampling)):
        scan = scan_order(component, height, width, CHROMA_FACTORS[subsampling], images.device)
        bits = bits + count_bits(stored_numbers(part.levels, scan), scan, component)
    return [math.ceil(each / 8) for each in bits.tolist()]


@pytest.mark.parametrize("quality", [1, 2, 10, 25, 49, 50, 51, 75, 80, 95, 99, 100])
def test_quantisation_tables_are_those_pillow_reports(quality, drawn, pillow_file):
    reported = Image.open(io.BytesIO(pillow_file(drawn(16, 16), quality))).quantization
    for component, steps in enumerate(tables.quantisation_steps(quality)):
        raster = [0] * 64
        for place, at in enumerate(tables.ZIGZAG):
            raster[at] = steps[place]
        assert raster == list(reported[component])


def test_huffman_tables_are_those_in_pillows_file(drawn, pillow_file):
    file = pillow_file(drawn(16, 16), 80)
    for number, (counts, symbols) in enumerate(
        zip(
            (*tables._DC_COUNTS, *tables._AC_COUNTS),
            (*[bytes(tables._DC_SYMBOLS)] * 2, *tables._AC_SYMBOLS),
            strict=True,
        )
    ):
        kind = (0x00, 0x01, 0x10, 0x11)[number]
        segment = bytes([kind, *counts]) + symbols
        assert b"\xff\xc4" + (len(segment) + 2).to_bytes(2, "big") + segment in file


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_header_is_as_long_as_pillows(subsampling, drawn, pillow_file, scan_bytes):
    image = np.full((24, 40, 3), 77, np.uint8)
    assert len(pillow_file(image, 80, subsampling)) - scan_bytes(image, 80, subsampling) == tables.HEADER_BYTES


@pytest.mark.parametrize("quality", [1, 20, 50, 80, 95, 100])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 17), (16, 16), (37, 51), (64, 40), (90, 121)])
def test_bit_count_is_exact(size, subsampling, quality, drawn, as_tensor, scan_bytes):
    """To the byte, for every edge that padding, dummy blocks and the storing order have to get right."""
    images = [drawn(*size, seed=seed) for seed in range(2)]
    expected = [scan_bytes(image, quality, subsampling) for image in images]
    assert counted_bytes(as_tensor(*images), quality, subsampling) == expected


@pytest.mark.parametrize("quality", [5, 50, 80, 95])
def test_bit_count_is_exact_on_photographs(quality, photographs, as_tensor, scan_bytes):
    for name in ("astronaut", "rocket", "camera"):
        image = np.array(photographs[name].resize((203, 150)))
        assert counted_bytes(as_tensor(image), quality, "4:2:0") == [scan_bytes(image, quality)]


@pytest.mark.parametrize("kind", ["noise", "black", "white", "grey", "checkerboard", "one dot"])
@pytest.mark.parametrize("quality", [50, 100])
def test_bit_count_is_exact_on_extremes(kind, quality, as_tensor, scan_bytes):
    shape = (48, 40, 3)
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        "black": np.zeros(shape, np.uint8),
        "white": np.full(shape, 255, np.uint8),
        "grey": np.full(shape, 128, np.uint8),
        "checkerboard": np.broadcast_to(255 * (np.indices(shape[:2]).sum(0) % 2)[..., None], shape).astype(np.uint8),
        "one dot": np.pad(np.full((1, 1, 3), 255, np.uint8), ((20, 27), (20, 19), (0, 0))),
    }[kind]
    assert counted_bytes(as_tensor(image), quality, "4:2:0") == [scan_bytes(image, quality)]


def test_flat_block_costs_six_bits_of_luma_and_four_of_chroma():
    for component, bits in ((0, 6), (1, 4)):
        scan = scan_order(component, 16, 16, (1, 1), torch.device("cpu"))
        assert count_bits(torch.zeros(1, 1, 4, 64), scan, component).tolist() == [4 * bits]


def raster_order(component, height, width, factors, device):
    blocks = -(-height // 8) * -(-width // 8)
    real = entropy.scan_order(component, height, width, factors, device)
    return real if component else real._replace(order=torch.arange(blocks))


def no_empty_blocks(component, height, width, factors, device):
    return entropy.scan_order(component, height, width, factors, device)._replace(padding=0)


def zero_padding(plane, height, width):
    return torch.nn.functional.pad(plane, (0, width - plane.shape[-1], 0, height - plane.shape[-2]))


def bits_without_zrl(self, zeros_before, size):
    return self.ac.take((zeros_before % 16 * entropy._AC_COLUMNS + size).long())


@pytest.mark.parametrize(
    ("owner", "name", "bug"),
    [
        (None, "scan_order", raster_order),
        (None, "scan_order", no_empty_blocks),
        (entropy._Code, "of_ac", bits_without_zrl),
        (transform, "_PASS_SHIFTS", (10, 16)),
        (transform, "_extend", zero_padding),
    ],
)
def test_exactness_catches_planted_bugs(owner, name, bug, monkeypatch, drawn, as_tensor, scan_bytes):
    """The comparison to the byte fails as soon as one detail of the encoder is wrong."""
    monkeypatch.setitem(globals(), name, bug) if owner is None else monkeypatch.setattr(owner, name, bug)
    images = [drawn(40, 56, seed=seed) for seed in range(3)]
    expected = [scan_bytes(image, 95) for image in images]
    assert counted_bytes(as_tensor(*images), 95, "4:2:0") != expected


def test_values_are_those_of_scipys_transform(drawn, as_tensor):
    """Within the rounding of the encoder's integers: of a colour (0.5), and of two passes."""
    dctn = pytest.importorskip("scipy.fft", reason="scipy is missing: its DCT is the reference").dctn
    image = drawn(32, 48)
    ycbcr = image @ np.array(transform._YCBCR).T - np.array([128, 0, 0])
    blocks = ycbcr.reshape(4, 8, 6, 8, 3).transpose(4, 0, 2, 1, 3).reshape(3, 24, 8, 8)
    reference = dctn(blocks, axes=(-2, -1), norm="ortho").reshape(3, 24, 64)[..., tables.ZIGZAG]
    luma, chroma = coefficients(as_tensor(image).double(), 80, "4:4:4")
    values = torch.cat([luma.values, chroma.values], dim=1)[0]
    torch.testing.assert_close(values, torch.from_numpy(reference), rtol=0, atol=1.6)
    assert (values - torch.from_numpy(reference)).square().mean().sqrt() < 0.35
    assert ((luma.values / luma.steps - luma.levels).abs() <= 0.5).all()


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", [(64, 64), (45, 51)])
def test_roundtrip_looks_like_pillows_decoder(size, subsampling, drawn, as_tensor, pillow_file):
    image = drawn(*size)
    decoded = np.array(Image.open(io.BytesIO(pillow_file(image, 60, subsampling))))
    ours = jpeg_roundtrip(as_tensor(image), 60, subsampling).clamp(0, 1) * 255
    difference = (ours - as_tensor(decoded) * 255).abs()
    assert difference.max() < 3.5
    assert difference.mean() < 0.6


@pytest.mark.parametrize("component", [0, 1])
def test_gains_are_differences_of_the_exact_count(component):
    """Each number in turn is made one size smaller and larger, and everything is counted again."""
    generator = torch.Generator().manual_seed(component)
    sparse = torch.rand(1, 1, 6, 64, generator=generator) < torch.tensor([0.02, 0.1, 0.3, 0.6, 0.9, 0.0])[:, None]
    numbers = (torch.randn(1, 1, 6, 64, generator=generator) * 12).round() * sparse
    scan = scan_order(component, 8, 48, (1, 1), torch.device("cpu"))
    now = count_bits(numbers, scan, component).item()
    found = crossings(numbers, torch.ones(64), component)
    for block in range(6):
        for place in range(64):
            number = numbers[0, 0, block, place].item()
            size = int(abs(number)).bit_length()
            changed = numbers.clone()
            changed[0, 0, block, place] = 2**size
            larger = count_bits(changed, scan, component).item() - now
            assert found.outer_gain[0, 0, block, place] == larger
            assert found.outer[0, 0, block, place] == 2**size - 0.5
            if size:
                changed[0, 0, block, place] = 2 ** (size - 1) - 1
                smaller = now - count_bits(changed, scan, component).item()
                assert found.inner_gain[0, 0, block, place] == smaller
                assert found.inner[0, 0, block, place] == 2 ** (size - 1) - 0.5
            else:
                assert found.inner_gain[0, 0, block, place] == -larger
                assert found.inner[0, 0, block, place] == -0.5
