"""The tables that libjpeg puts into a file when nobody gives it others: quantisation, Huffman, zigzag.

Plain numbers, so that both the transform and the bit count can read them. Imports nothing of this package.
Source: ITU-T T.81 (1992), Annex K, tables K.1 to K.6; the quality scaling is libjpeg's `jpeg_quality_scaling`.
"""

from __future__ import annotations

from functools import lru_cache

BLOCK = 8

# Raster index of each coefficient of a block in the order in which it is stored, low frequencies first.
ZIGZAG = sorted(
    range(BLOCK * BLOCK),
    key=lambda at: (at // 8 + at % 8, at // 8 if (at // 8 + at % 8) % 2 else at % 8),
)

# Tables K.1 and K.2, in raster order: quantisation steps at quality 50 for luma and for chroma.
_STEPS_AT_50 = (
    (
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ),
    (
        *(17, 18, 24, 47, 99, 99, 99, 99),
        *(18, 21, 26, 66, 99, 99, 99, 99),
        *(24, 26, 56, 99, 99, 99, 99, 99),
        *(47, 66, 99, 99, 99, 99, 99, 99),
        *([99] * 32),
    ),
)

# Tables K.3 to K.6 as a file's DHT segment holds them: how many codes have 1, 2, .. 16 bits, then the
# symbols by increasing code length. A DC symbol is a size; an AC symbol is 16 * run + size.
_DC_COUNTS = (
    (0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0),
    (0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0),
)
_DC_SYMBOLS = tuple(range(12))
_AC_COUNTS = (
    (0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125),
    (0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119),
)
_AC_SYMBOLS = (
    bytes.fromhex(
        "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728"
        "292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a83848586878889"
        "8a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2"
        "e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
    ),
    bytes.fromhex(
        "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a26"
        "2728292a35363738393a434445464748494a535455565758595a636465666768696a737475767778797a828384858687"
        "88898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9da"
        "e2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
    ),
)

END_OF_BLOCK = 0x00
SIXTEEN_ZEROS = 0xF0

# Bytes of everything but the scan's bits, for a colour file: SOI 2, JFIF 18, two DQT 138, SOF0 19,
# four DHT 432, SOS 14, EOI 2. Pillow writes exactly this when it is given no metadata.
HEADER_BYTES = 625


def quantisation_steps(quality: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Steps for luma and for chroma at a libjpeg quality of 1..100, 64 each, in zigzag order."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        tuple(min(max((table[at] * percent + 50) // 100, 1), 255) for at in ZIGZAG) for table in _STEPS_AT_50
    )
    return luma, chroma


@lru_cache
def dc_bits(component: int) -> tuple[int, ...]:
    """Bits that a DC difference of size 0..11 costs, code and magnitude together (0 luma, 1 chroma)."""
    lengths = _code_lengths(_DC_COUNTS[component], _DC_SYMBOLS)
    return tuple(lengths[size] + size for size in range(12))


@lru_cache
def ac_bits(component: int) -> tuple[tuple[int, ...], ...]:
    """Bits of a non-zero AC coefficient, `[zeros before it, 0..62][size, 0..10]`: ZRL codes, code, magnitude.

    Column 0 stands for a zero, which has no code of its own, and holds 0.
    """
    lengths = _code_lengths(_AC_COUNTS[component], tuple(_AC_SYMBOLS[component]))
    sixteen = lengths[SIXTEEN_ZEROS]
    return tuple(
        (0, *(run // 16 * sixteen + lengths[run % 16 * 16 + size] + size for size in range(1, 11))) for run in range(63)
    )


def end_of_block_bits(component: int) -> int:
    """Bits of the mark after the last non-zero coefficient of a block that ends in zeros."""
    return _code_lengths(_AC_COUNTS[component], tuple(_AC_SYMBOLS[component]))[END_OF_BLOCK]


def _code_lengths(counts: tuple[int, ...], symbols: tuple[int, ...]) -> dict[int, int]:
    by_length = [length for length, count in enumerate(counts, start=1) for _ in range(count)]
    return dict(zip(symbols, by_length, strict=True))
