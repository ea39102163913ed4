"""Two planes: bytes written out by hand, sums that are read off weights, and what must be refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sherry_gguf.errors import SherryError
from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import PATTERNS
from sherry_gguf.formats.sherry_2p import PLANE, SHERRY_2P, pack_planes, unpack_planes
from sherry_gguf.formats.table import format_version, known_as, named


def planes(seed, rows=6, k=512):
    """codes uint8[rows, k/4] and fp16 scales [rows, k/128] of two planes, the first one's scales being larger"""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 32, (2, rows, k // 4), dtype=np.uint8)
    d0 = rng.uniform(0.01, 0.1, (rows, k // 128)).astype(np.float16)
    return *codes, d0, (d0 * rng.uniform(0.1, 0.9, d0.shape)).astype(np.float16)


def sums(codes0, codes1, scales0, scales1):
    """float32[rows, k], in the plainest way"""
    parts = [
        PATTERNS[codes].reshape(*scales.shape, 128) * scales.astype(np.float32)[..., None]
        for codes, scales in ((codes0, scales0), (codes1, scales1))
    ]
    return (parts[0] + parts[1]).reshape(len(codes0), -1)


def test_golden_bytes():
    # first plane 1.5 = 0x3E00, second 0.5 = 0x3800. Group 0: codes 0 = (0, +, +, +) and 31 = (-, +, +, 0);
    # group 17: codes 16 = (0, -, -, -) and 0; all others: code 4 = (+, 0, +, +) and code 0.
    weights = np.tile(np.array([1.5, 0.5, 2, 2], dtype=np.float32), 32)
    weights[:4] = (-0.5, 2, 2, 1.5)
    weights[68:72] = (0, -1, -1, -1)
    first = [0x40, 0x04] + [0x44] * 14 + [0, 0, 0b10, 0, 0x00, 0x3E]
    second = [0x0F] + [0] * 15 + [1, 0, 0, 0, 0x00, 0x38]
    golden = bytes(first + second)
    assert SHERRY_2P.pack(weights[None]).tobytes() == golden
    assert np.array_equal(SHERRY_2P.dequantize(np.frombuffer(golden, dtype=np.uint8)[None])[0], weights)


def test_the_worked_example_of_the_documentation(repository):
    page = (repository / "docs/format.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    ((?:[0-9A-F]{2} *){22})$", page, re.MULTILINE)
    weights = np.tile(np.array([0, 1.5, 1.5, 1.5], dtype=np.float32), 32)
    weights[:8] = (0, -1.5, 1.5, 1.5, 1.5, 0, -1.5, 1.5)
    assert [bytes.fromhex(line) for line in shown[-2:]] == [
        sherry.SHERRY.pack(weights[None]).tobytes(),
        sherry.BLOCKS.pack(np.full((1, 32), 4, dtype=np.uint8), np.array([[0.5]], dtype=np.float32)).tobytes(),
    ]


def test_every_pair_of_codes():
    codes0, codes1 = (codes.reshape(32, 32).astype(np.uint8) for codes in np.indices((32, 32)))
    d = np.full((32, 1), 1.5, dtype=np.float16), np.full((32, 1), 0.25, dtype=np.float16)
    packed = pack_planes(codes0, codes1, *d)
    assert np.array_equal(packed[:, :22], sherry.BLOCKS.pack(codes0, d[0].astype(np.float32)))
    assert np.array_equal(packed[:, 22:], sherry.BLOCKS.pack(codes1, d[1].astype(np.float32)))
    assert all(np.array_equal(a, b) for a, b in zip(unpack_planes(packed), (codes0, codes1, *d), strict=True))
    weights = SHERRY_2P.dequantize(packed)
    assert np.array_equal(weights, sums(codes0, codes1, *d))
    assert np.array_equal(SHERRY_2P.pack(weights), packed)


@pytest.mark.parametrize("seed", range(3))
def test_any_scales(seed):
    """The sums need more bits than fp16 has; codes and scales are read off them all the same."""
    given = planes(seed)
    packed = pack_planes(*given)
    weights = SHERRY_2P.dequantize(packed)
    assert np.array_equal(weights, sums(*given))
    assert not np.array_equal(weights, weights.astype(np.float16))
    assert SHERRY_2P.holds(weights)
    assert np.array_equal(SHERRY_2P.pack(weights), packed)


@pytest.mark.parametrize("case", ["equal", "half", "smaller first", "tiny", "one zero for both", "opposed", "mixed"])
def test_planes_that_can_be_read_off_in_several_ways(case):
    codes0, codes1, d0, d1 = planes(7)
    if case == "equal":
        d1 = d0
    elif case == "half":
        d1 = d0 / 2
    elif case == "smaller first":
        d0, d1 = d1, d0
    elif case == "tiny":
        d1 = (d0 / 4000).astype(np.float16)
    elif case == "one zero for both":
        codes1 = codes1 & 0b10011 | codes0 & 0b01100
    elif case == "opposed":
        codes1 = codes0 ^ 16
    else:
        d0[::2], d1[:, ::2] = 0, 0
        codes1[1] = codes0[1]
    weights = sums(codes0, codes1, d0, d1)
    if case == "opposed":  # one magnitude, d0 - d1, which is rounded as that of any single plane is
        assert SHERRY_2P.holds(weights)
        assert not unpack_planes(SHERRY_2P.encode(weights))[3].any()
    elif case == "mixed":
        weights[1] = weights[1].astype(np.float16)  # its sums are single planes
        assert np.array_equal(SHERRY_2P.dequantize(SHERRY_2P.pack(weights)), weights)
    else:
        assert np.array_equal(SHERRY_2P.dequantize(SHERRY_2P.pack(weights)), weights)


def test_every_matrix_of_sherry():
    """Any codes, all fp16 scales: the first plane is SHERRY's block, the second 22 zero bytes."""
    scales = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32).reshape(31, -1)
    codes = np.random.default_rng(1).integers(0, 32, (31, scales.shape[1] * 32), dtype=np.uint8)
    blocks = sherry.BLOCKS.pack(codes, scales)
    packed = SHERRY_2P.pack(sherry.SHERRY.dequantize(blocks)).reshape(-1, 44)
    assert np.array_equal(packed[:, :22], blocks.reshape(-1, 22))
    assert not packed[:, 22:].any()


def test_alpha_is_rounded_to_fp16():
    weights = np.tile(np.array([0, 0.1, -0.1, 0.1], dtype=np.float32), (2, 64))
    assert SHERRY_2P.holds(weights)
    assert np.array_equal(unpack_planes(SHERRY_2P.encode(weights))[2], np.full((2, 2), np.float16(0.1)))
    with pytest.raises(SherryError, match="384 weights do not fit SHERRY_2P"):
        SHERRY_2P.pack(weights)


def test_weights_that_are_no_sums_are_counted():
    weights = sums(*planes(3))
    assert SHERRY_2P.count_wrong(weights) == 0
    weights[4, 130] += 0.001
    assert not SHERRY_2P.holds(weights)
    with pytest.raises(SherryError, match=r"weights do not fit SHERRY_2P: .* 2 planes that add up, .* row 4, group"):
        SHERRY_2P.pack(weights)
    plain = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    assert 2000 < SHERRY_2P.count_wrong(plain) <= plain.size
    for damaged in (np.nan, np.inf):
        weights[4, 130] = damaged
        assert SHERRY_2P.count_wrong(weights) > 0


def test_a_scale_outside_fp16_is_refused():
    codes0, codes1, d0, d1 = planes(0)
    for i, scale in ((2, 65520.0), (3, -1.0), (3, np.nan)):
        given = [codes0, codes1, d0.astype(np.float32), d1.astype(np.float32)]
        given[i][2, 1] = scale
        with pytest.raises(SherryError, match=r"row 2, group 32 "):
            pack_planes(*given)
    with pytest.raises(SherryError, match=r"shapes \[6, 128\] and \[6, 64\]"):
        pack_planes(codes0, codes1[:, :64], d0, d1)


@pytest.mark.parametrize("plane", [0, 1])
@pytest.mark.parametrize("d", [0x7E00, 0x7C00, 0xBC00])
def test_a_damaged_scale_is_refused_on_reading(plane, d):
    packed = pack_planes(*planes(0))
    packed[1, 44 + 22 * plane + 20 : 44 + 22 * plane + 22] = d & 0xFF, d >> 8
    with pytest.raises(SherryError, match="block 1 of row 1"):
        SHERRY_2P.dequantize(packed)


def test_truncated_and_odd_rows_are_refused():
    with pytest.raises(SherryError, match="66 bytes are no multiple of a SHERRY_2P block's 44"):
        SHERRY_2P.dequantize(np.zeros((1, 66), dtype=np.uint8))
    with pytest.raises(SherryError, match="rows of 192 weights are no multiple of 128, which SHERRY_2P needs"):
        SHERRY_2P.pack(np.zeros((1, 192), dtype=np.float32))


def test_the_record():
    assert SHERRY_2P.block_bytes == 2 * PLANE.dtype.itemsize == 44
    assert SHERRY_2P.bits_per_weight == 2.75
    assert (SHERRY_2P.type_id, SHERRY_2P.file_type, SHERRY_2P.outtype) == (521, 521, "sherry_2p")
    assert named("sherry_2p") is SHERRY_2P
    assert known_as(521) == [SHERRY_2P]
    for names, version in ((("SHERRY_2P",), 2), (("SHERRY", "SHERRY_2P"), 2)):
        assert format_version(named(name) for name in names) == version
