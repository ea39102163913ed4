"""STQ1_0's blocks: bytes written out by hand from docs/format.md, every code in every place, what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import stq1_oracle

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry, stq1_0
from sherry_gguf.weights.granularity import Granularity
from sherry_gguf.weights.quantize import quantize

# The weights of each index under sign 0, written out from its definition; under sign 1 all are negated.
INDEX = (
    ("0+++", "0+-+", "0++-", "0+--"),
    ("+0++", "+0-+", "+0+-", "+0--"),
    ("++0+", "+-0+", "++0-", "+-0-"),
    ("+++0", "+-+0", "++-0", "+--0"),
)


def pattern(code):
    """code -> its four weights."""
    return [{"0": 0, "+": 1, "-": -1}[c] * (-1 if code >= 16 else 1) for c in INDEX[code >> 2 & 3][code & 3]]


def block(codes, scale):
    """64 codes -> float32[256], one weight at a time."""
    weights = np.zeros(256, dtype=np.float32)
    for g, code in enumerate(codes):
        for p, t in enumerate(pattern(code)):
            weights[g // 16 * 64 + g % 16 + 16 * p] = t * scale
    return weights


def both_ways(weights, golden):
    data = np.frombuffer(bytes.fromhex(golden), dtype=np.uint8)[None]
    assert stq1_0.STQ1_0.pack(weights[None]).tobytes().hex() == golden
    assert np.array_equal(stq1_0.STQ1_0.dequantize(data)[0], weights)
    planes = stq1_0.STQ1_0.decode(data)
    assert planes.t.dtype == np.int8
    assert np.array_equal(planes.t[0] * planes.d[0], weights[None])


def test_golden_bytes_of_every_code():
    # codes 0..31 in order, then 31..0; scale 1.5 = fp16 0x3E00. The low nibble is the even group's.
    rising, falling = "1032547698badcfe", "efcdab8967452301"
    golden = rising * 2 + falling * 2 + "0000ffffffff0000" + "003e"
    both_ways(block([*range(32), *range(31, -1, -1)], 1.5), golden)


def test_golden_bytes_of_single_groups():
    # code 0 = (0, +, +, +) everywhere, but: group 0 code 31 = (-, +, +, 0), which is weights 0, 16, 32, 48;
    # group 17 code 5 = (+, 0, -, +), weights 65, 81, 97, 113; group 63 code 24 = (-, -, 0, -), weights 207, 223, 239,
    # 255. Scale 2**-24, the smallest of fp16.
    weights = np.ones((4, 4, 16), dtype=np.float32)
    weights[:, 0] = 0
    weights = weights.reshape(256)
    weights[[0, 16, 32, 48]] = -1, 1, 1, 0
    weights[[65, 81, 97, 113]] = 1, 0, -1, 1
    weights[[207, 223, 239, 255]] = -1, -1, 0, -1
    qs = bytearray(32)
    qs[0], qs[8], qs[31] = 0x0F, 0x50, 0x80
    both_ways(weights * np.float32(2.0**-24), qs.hex() + "0100000000000080" + "0100")


def test_a_block_of_zeros_is_zero_bytes():
    assert not stq1_0.BLOCKS.pack(np.full((1, 64), 31, dtype=np.uint8), np.zeros((1, 1), dtype=np.float32)).any()
    both_ways(np.zeros(256, dtype=np.float32), "00" * 42)
    assert not stq1_0.STQ1_0.pack(np.full((2, 512), -0.0, dtype=np.float32)).any()


@pytest.mark.parametrize("position", range(64))
def test_every_code_in_every_position(position):
    codes = np.random.default_rng(position).integers(0, 32, (32, 64), dtype=np.uint8)
    codes[:, position] = np.arange(32)
    packed = stq1_0.BLOCKS.pack(codes, np.full((32, 1), 0.75, dtype=np.float32))
    unpacked, d = stq1_0.BLOCKS.unpack(packed)
    assert np.array_equal(unpacked, codes)
    assert (d == 0.75).all()
    expected = np.stack([block(row, 0.75) for row in codes])
    assert np.array_equal(stq1_0.STQ1_0.dequantize(packed), expected)
    assert np.array_equal(stq1_0.STQ1_0.pack(expected), packed)


@pytest.mark.parametrize("seed", range(20))
def test_random_round_trips(seed):
    """Rows of one to nine blocks, scales of any fp16 number, blocks of zeros among them; bytes that are not aligned."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 10, 2)
    codes = rng.integers(0, 32, (shape[0], shape[1] * 64), dtype=np.uint8)
    scales = rng.integers(0, 0x7C00, shape, dtype=np.uint16).view(np.float16).astype(np.float32)
    scales[rng.random(shape) < 0.1] = 0
    packed = stq1_0.BLOCKS.pack(codes, scales)
    assert packed.shape == (shape[0], shape[1] * 42)
    shifted = np.empty(packed.size + 1, dtype=np.uint8)[1:].reshape(packed.shape)
    shifted[:] = packed
    kept = np.where(scales.repeat(64, axis=1) == 0, 0, codes)
    for given in (packed, shifted, np.asfortranarray(packed)):
        assert np.array_equal(stq1_0.BLOCKS.unpack(given)[0], kept)
        assert np.array_equal(stq1_0.BLOCKS.unpack(given)[1], scales)
    assert np.array_equal(stq1_0.STQ1_0.pack(stq1_0.STQ1_0.dequantize(packed)), packed)


def test_the_independent_oracle_of_the_c_tests_says_the_same():
    """tests/native/stq1_oracle.py, written from the description of the bytes alone."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 32, (7, 5 * 64), dtype=np.uint8)
    scales = rng.lognormal(-3, 1, (7, 5)).astype(np.float16).astype(np.float32)
    packed = stq1_0.BLOCKS.pack(codes, scales)
    assert np.array_equal(stq1_oracle.pack(codes, scales), packed)
    assert np.array_equal(stq1_oracle.dequantize(packed), stq1_0.STQ1_0.dequantize(packed))
    latents = rng.standard_normal((7, 1280)).astype(np.float32)
    granularity = Granularity("per_group", 256)
    found = quantize(latents, granularity, grid="stride16", ties="first")
    assert np.array_equal(stq1_oracle.quantize(latents), stq1_0.BLOCKS.pack(found.codes, found.scales[:, ::2]))


def test_any_bytes_but_bad_scales_are_read_and_written_back():
    data = np.random.default_rng(0).integers(0, 256, (500, 42), dtype=np.uint8)
    d = data[:, 40:].copy().view(np.float16)[:, 0]
    good = np.isfinite(d) & (d > 0)
    assert good.sum() > 200
    assert np.array_equal(stq1_0.BLOCKS.pack(*stq1_0.BLOCKS.unpack(data[good])), data[good])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (256 + 17, 0.0, "3 weights"),  # a second zero in group 65: the group has no code, and is read as (0, +, +, +)
        (256 + 17, 2.0, "weights do not fit STQ1_0"),  # another magnitude
        (256 + 17, -1.0009765, "weights do not fit STQ1_0"),
        (256 + 17, np.nan, "fp16"),
    ],
)
def test_pack_exact_refuses_what_it_would_change(place, value, message):
    weights = np.tile(block([16] * 64, 1.0), (2, 2))
    weights[1, place] = value
    with pytest.raises(SherryError, match=message) as caught:
        stq1_0.STQ1_0.pack(weights)
    assert "row 1, group 6" in str(caught.value)


def test_pack_exact_refuses_neighbours_in_fours_and_merged_scales():
    """What SHERRY holds: groups of four neighbours; and on STQ1_0's own grid, a scale per 128."""
    consecutive = np.tile(np.array([0, 1, 1, -1], dtype=np.float32), (1, 64))
    assert sherry.SHERRY.pack(consecutive).any()
    with pytest.raises(SherryError, match="weights do not fit STQ1_0"):
        stq1_0.STQ1_0.pack(consecutive)
    weights = block([3] * 64, 1.0)
    weights[128:] *= 0.5
    with pytest.raises(SherryError, match="96 weights"):
        stq1_0.STQ1_0.pack(weights[None])
    weights[128:] = 0
    with pytest.raises(SherryError, match="96 weights"):
        stq1_0.STQ1_0.pack(weights[None])


@pytest.mark.parametrize("k", [64, 128, 384, 132])
def test_rows_that_are_no_multiple_of_256_are_refused(k):
    with pytest.raises(SherryError, match=f"rows of {k} weights"):
        stq1_0.STQ1_0.pack(np.ones((1, k), dtype=np.float32))
    with pytest.raises(SherryError, match=f"rows of {k} weights"):
        stq1_0.BLOCKS.pack(np.zeros((1, k // 4), dtype=np.uint8), np.ones((1, 1), dtype=np.float32))


def test_scales_that_change_inside_a_block_are_refused():
    with pytest.raises(SherryError, match="a scale per 128 weights"):
        stq1_0.BLOCKS.pack(np.zeros((1, 64), dtype=np.uint8), np.ones((1, 2), dtype=np.float32))
