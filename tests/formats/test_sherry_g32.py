"""Blocks of 32: bytes written out by hand, every code in every place, every scale, and what must be refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.sherry_g32 import BLOCKS, SHERRY_G32
from sherry_gguf.formats.table import format_version, known_as, named


def test_golden_bytes():
    # group 0: code 0 = (0, +, +, +); group 1: code 31 = (-, +, +, 0) by sign 1, zero at 3, both others differ;
    # group 5: code 6 = (+, 0, +, -); group 7: code 16 = (0, -, -, -); the 4 others: code 0. Scale 1.5 = fp16 0x3E00.
    weights = np.tile(np.array([0, 1.5, 1.5, 1.5], dtype=np.float32), 8)
    weights[4:8] = (-1.5, 1.5, 1.5, 0)
    weights[20:24] = (1.5, 0, 1.5, -1.5)
    weights[28:32] = (0, -1.5, -1.5, -1.5)
    golden = bytes([0x00, 0x6F, 0x00, 0x00, 0b1000_0010, 0x00, 0x3E])
    assert SHERRY_G32.pack(weights[None]).tobytes() == golden
    assert np.array_equal(SHERRY_G32.dequantize(np.frombuffer(golden, dtype=np.uint8)[None])[0], weights)


def test_two_blocks_and_the_smallest_scale():
    # code 31 everywhere: nibbles 15, all signs set; scales 2**-24, the smallest of fp16, and 65504, the largest
    codes = np.full((1, 16), 31, dtype=np.uint8)
    packed = BLOCKS.pack(codes, np.array([[2.0**-24, 65504]], dtype=np.float32))
    assert packed.tobytes() == bytes([0xFF] * 5 + [0x01, 0x00] + [0xFF] * 5 + [0xFF, 0x7B])


def test_the_worked_example_of_the_documentation(repository):
    page = (repository / "docs/format.md").read_text(encoding="utf-8")
    shown = re.search(r"^    ((?:[0-9A-F]{2} *){7})$", page, re.MULTILINE)[1]
    weights = np.tile(np.array([0, 1.5, 1.5, 1.5], dtype=np.float32), 8)
    weights[:8] = (0, -1.5, 1.5, 1.5, 1.5, 0, -1.5, 1.5)
    assert SHERRY_G32.pack(weights[None]).tobytes() == bytes.fromhex(shown)


@pytest.mark.parametrize("position", range(8))
def test_every_code_in_every_position(position):
    codes = np.random.default_rng(position).integers(0, 32, (32, 8), dtype=np.uint8)
    codes[:, position] = np.arange(32)
    scales = np.full((32, 1), 0.75, dtype=np.float32)
    packed = BLOCKS.pack(codes, scales)
    unpacked, d = BLOCKS.unpack(packed)
    assert np.array_equal(unpacked, codes)
    assert np.array_equal(d, scales)
    index = packed[:, position % 4] >> 4 * (position // 4) & 0xF
    assert np.array_equal(packed[:, 4] >> position & 1, np.arange(32) >> 4)
    assert np.array_equal(index, np.arange(32) & 0xF)
    expected = PATTERNS[codes].reshape(32, 32) * np.float32(0.75)
    assert np.array_equal(SHERRY_G32.dequantize(packed), expected)
    assert np.array_equal(SHERRY_G32.pack(expected), packed)


def test_every_scale():
    """All fp16 numbers that are finite and not negative, each in a block of its own."""
    bits = np.arange(0x7C00, dtype=np.uint16).reshape(31, -1)
    scales = bits.view(np.float16).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 32, (31, bits.shape[1] * 8), dtype=np.uint8)
    packed = BLOCKS.pack(codes, scales)
    fields = packed.view(BLOCKS.dtype)
    assert np.array_equal(fields["d"].view(np.uint16), bits)
    weights = SHERRY_G32.dequantize(packed)
    expected = PATTERNS[codes].reshape(31, -1, 32) * scales[..., None]
    assert np.array_equal(weights, expected.reshape(31, -1))
    assert np.array_equal(SHERRY_G32.pack(weights), packed)


@pytest.mark.parametrize("k", [32, 96, 160, 576])
def test_rows_of_any_multiple_of_32_and_misaligned_input(k):
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 32, (5, k // 4), dtype=np.uint8)
    scales = rng.uniform(0.01, 2, (5, k // 32)).astype(np.float16).astype(np.float32)
    packed = BLOCKS.pack(codes, scales)
    assert packed.shape == (5, k // 32 * 7)
    shifted = np.empty(packed.size + 1, dtype=np.uint8)[1:].reshape(packed.shape)
    shifted[:] = packed
    for given in (packed, shifted, np.asfortranarray(packed)):
        assert np.array_equal(BLOCKS.unpack(given)[0], codes)
        assert np.array_equal(BLOCKS.unpack(given)[1], scales)


def test_four_blocks_have_the_weights_of_a_sherry_block():
    codes = np.random.default_rng(2).integers(0, 32, (3, 64), dtype=np.uint8)
    scales = np.array([[0.5, 2], [0, 0.25], [1, 1]], dtype=np.float32)
    of_128 = sherry.SHERRY.dequantize(sherry.BLOCKS.pack(codes, scales))
    assert np.array_equal(SHERRY_G32.dequantize(BLOCKS.pack(codes, scales.repeat(4, axis=1))), of_128)


def test_a_block_of_zeros_is_zero_bytes():
    assert not BLOCKS.pack(np.full((1, 8), 31, dtype=np.uint8), np.zeros((1, 1), dtype=np.float32)).any()
    assert not SHERRY_G32.pack(np.zeros((2, 96), dtype=np.float32)).any()
    assert not SHERRY_G32.pack(np.full((1, 32), -0.0, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((38, 0.0), "2 weights"),  # a second zero: the group has no code
        ((38, 2.0), "weights do not fit SHERRY_G32"),  # another magnitude
        ((38, np.nan), "fp16"),
    ],
)
def test_pack_refuses_what_it_would_change(change, message):
    weights = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (2, 24))
    weights[1, change[0]] = change[1]
    with pytest.raises(SherryError, match=message) as caught:
        SHERRY_G32.pack(weights)
    assert "row 1" in str(caught.value)


@pytest.mark.parametrize("k", [16, 48, 132])
def test_rows_that_are_no_multiple_of_32_are_refused(k):
    with pytest.raises(SherryError, match=f"rows of {k} weights are no multiple of 32, which SHERRY_G32 needs"):
        SHERRY_G32.pack(np.tile(np.array([0, 1, 1, 1], dtype=np.float32), (1, k // 4)))


def test_the_record():
    assert SHERRY_G32.block_bytes == BLOCKS.dtype.itemsize == 7
    assert SHERRY_G32.bits_per_weight == 1.75
    assert (SHERRY_G32.type_id, SHERRY_G32.file_type, SHERRY_G32.outtype) == (520, 520, "sherry_g32")
    assert named("sherry_g32") is SHERRY_G32
    assert known_as(520) == [SHERRY_G32]


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("SHERRY_G32",), 2),
        (("SHERRY", "SHERRY_G32", "Q4_0"), 2),
        (("SHERRY", "STQ1_0"), 1),
        (("STQ1_0", "Q4_0"), None),
    ],
)
def test_the_version_of_a_file(names, version):
    assert format_version(named(name) for name in names) == version
