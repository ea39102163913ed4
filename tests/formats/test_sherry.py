"""Blocks: bytes written out by hand, every code in every place, and what must be refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.scales import require_fit


def test_golden_bytes():
    # group 0: code 0 = (0, +, +, +); group 1: code 31 = (-, +, +, 0) by sign 1, zero at 3, both others differ;
    # group 16: code 5 = (+, 0, -, +); the 29 others: code 0. Scale 1.5 = fp16 0x3E00.
    weights = np.tile(np.array([0, 1.5, 1.5, 1.5], dtype=np.float32), 32)
    weights[4:8] = (-1.5, 1.5, 1.5, 0)
    weights[64:68] = (1.5, 0, -1.5, 1.5)
    golden = bytes([0x50, 0x0F] + [0x00] * 14 + [0x02, 0x00, 0x00, 0x00] + [0x00, 0x3E])
    assert sherry.SHERRY.pack(weights[None]).tobytes() == golden
    assert np.array_equal(sherry.SHERRY.dequantize(np.frombuffer(golden, dtype=np.uint8)[None])[0], weights)


def test_the_worked_example_of_the_documentation(repository):
    """Eight weights of docs/format.md, and the bytes that stand there."""
    page = (repository / "docs/format.md").read_text(encoding="utf-8")
    shown = re.search(r"^    ((?:[0-9A-F]{2} *){22})$", page, re.MULTILINE)[1]
    weights = np.tile(np.array([0, 1.5, 1.5, 1.5], dtype=np.float32), 32)
    weights[:8] = (0, -1.5, 1.5, 1.5, 1.5, 0, -1.5, 1.5)
    assert sherry.SHERRY.pack(weights[None]).tobytes() == bytes.fromhex(shown)


def test_golden_signs_and_high_nibbles():
    # code 31 everywhere: nibbles 15, all signs set; scale 2**-24, the smallest fp16
    codes = np.full((1, 32), 31, dtype=np.uint8)
    packed = sherry.BLOCKS.pack(codes, np.array([[2.0**-24]], dtype=np.float32))
    assert packed.tobytes() == bytes([0xFF] * 16 + [0xFF] * 4 + [0x01, 0x00])


@pytest.mark.parametrize("position", range(32))
def test_every_code_in_every_position(position):
    codes = np.random.default_rng(position).integers(0, 32, (32, 32), dtype=np.uint8)
    codes[:, position] = np.arange(32)
    scales = np.full((32, 1), 0.75, dtype=np.float32)
    packed = sherry.BLOCKS.pack(codes, scales)
    unpacked, d = sherry.BLOCKS.unpack(packed)
    assert np.array_equal(unpacked, codes)
    assert np.array_equal(d, scales)
    expected = PATTERNS[codes].reshape(32, 128) * np.float32(0.75)
    assert np.array_equal(sherry.SHERRY.dequantize(packed), expected)
    assert np.array_equal(sherry.SHERRY.pack(expected), packed)


def test_many_blocks_a_row_and_misaligned_input():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 32, (5, 7 * 32), dtype=np.uint8)
    scales = rng.uniform(0.01, 2, (5, 7)).astype(np.float16).astype(np.float32)
    packed = sherry.BLOCKS.pack(codes, scales)
    shifted = np.empty(packed.size + 1, dtype=np.uint8)[1:].reshape(packed.shape)
    shifted[:] = packed
    for given in (packed, shifted, np.asfortranarray(packed)):
        assert np.array_equal(sherry.BLOCKS.unpack(given)[0], codes)
        assert np.array_equal(sherry.BLOCKS.unpack(given)[1], scales)


def test_a_block_of_zeros_is_zero_bytes():
    assert not sherry.BLOCKS.pack(np.full((1, 32), 31, dtype=np.uint8), np.zeros((1, 1), dtype=np.float32)).any()
    assert not sherry.SHERRY.pack(np.zeros((2, 256), dtype=np.float32)).any()
    assert not sherry.SHERRY.pack(np.full((1, 128), -0.0, dtype=np.float32)).any()


def test_a_scale_that_does_not_fit_is_found_whatever_it_is_shared_by():
    scales = np.ones((3, 8), dtype=np.float32)
    scales[2, 5] = np.inf
    with pytest.raises(SherryError, match=r"row 2, group 40 \(weights 160\.\.163\)"):
        require_fit(scales, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((130, 0.0), "2 weights"),  # a second zero: the group has no code
        ((130, 2.0), "weights do not fit SHERRY"),  # another magnitude
        ((130, -1.0009765), "weights do not fit SHERRY"),
        ((130, np.nan), "fp16"),
    ],
)
def test_pack_exact_refuses_what_it_would_change(change, message):
    weights = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (2, 64))
    weights[1, change[0]] = change[1]
    with pytest.raises(SherryError, match=message) as caught:
        sherry.SHERRY.pack(weights)
    assert "row 1" in str(caught.value)


def test_pack_exact_refuses_a_scale_that_fp16_does_not_have():
    with pytest.raises(SherryError, match="weights do not fit SHERRY"):
        sherry.SHERRY.pack(np.tile(np.array([0, 0.1, 0.1, -0.1], dtype=np.float32), (1, 32)))


@pytest.mark.parametrize("k", [64, 192, 132])
def test_rows_that_are_no_multiple_of_128_are_refused(k):
    with pytest.raises(SherryError, match=f"rows of {k} weights"):
        sherry.SHERRY.pack(np.tile(np.array([0, 1, 1, 1], dtype=np.float32), (1, k // 4)))


def test_sizes():
    assert sherry.SHERRY.block_bytes == sherry.BLOCKS.dtype.itemsize == 22
    assert sherry.SHERRY.bits_per_weight == 1.375
