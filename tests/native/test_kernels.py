"""vec_dot and the quantization of activations: every kernel gives the integers of the generic one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, PATTERNS
from sherry_gguf.formats.sherry import SHERRY

pytestmark = pytest.mark.runtime

LENGTHS = [128, 256, 384, 640, 4224]


def misaligned(row: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy at an odd address."""
    room = np.empty(row.size + 2, dtype=np.uint8)
    start = 1 - room.ctypes.data % 2
    room[start : start + row.size] = row
    return room[start : start + row.size]


def random_row(k: int, seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CODES, (1, k // 4), dtype=np.uint8)
    return sherry.BLOCKS.pack(codes, rng.uniform(0.01, 1, (1, k // SHERRY.block)).astype(np.float32))[0]


@pytest.mark.parametrize("extreme", [-127, -1, 0, 1, 127])
def test_integer_sums_of_every_code_in_every_position(ggml: Any, kernel: str, extreme: int) -> None:
    codes = np.add.outer(np.arange(CODES), np.arange(32)).astype(np.uint8) % CODES
    row = sherry.BLOCKS.pack(codes, np.ones((CODES, 1), np.float32)).reshape(-1)
    weights = PATTERNS[codes].reshape(CODES, SHERRY.block)
    for lanes in (
        np.full((CODES, SHERRY.block), extreme, np.int8),
        (weights * extreme).astype(np.int8),  # the largest sums there are: 96 * 127
        np.random.default_rng(0).integers(-127, 128, (CODES, SHERRY.block)).astype(np.int8),
    ):
        expected = (weights.astype(np.int32) * lanes).sum(axis=1)
        np.testing.assert_array_equal(ggml.integer_sums(kernel, row, ggml.pack_activations(lanes)), expected)


@pytest.mark.parametrize("k", LENGTHS)
def test_integer_sums_at_odd_addresses(ggml: Any, kernel: str, k: int) -> None:
    row = random_row(k, k)
    x = ggml.pack_activations(
        np.random.default_rng(1).integers(-127, 128, (k // SHERRY.block, SHERRY.block)).astype(np.int8)
    )
    expected = ggml.integer_sums("generic", row, x)
    np.testing.assert_array_equal(ggml.integer_sums(kernel, misaligned(row), x), expected)


@pytest.mark.parametrize("k", LENGTHS)
def test_vec_dot(ggml: Any, kernel: str, k: int) -> None:
    rng = np.random.default_rng(k)
    row = random_row(k, k)
    x = ggml.activations(kernel, (rng.standard_normal(k) * 5).astype(np.float32))
    sums = ggml.integer_sums("generic", row, x)
    codes, d = sherry.BLOCKS.unpack(row[None])
    scales = d[0].astype(np.float64) * x["d"]
    # float32: a term is rounded in the product of its scales, and with each of the k/128 blocks that are added, to
    # partial sums that do not exceed the sum of magnitudes
    weights = PATTERNS[codes].reshape(-1, SHERRY.block).astype(np.int32)
    magnitudes = np.abs(weights * ggml.unpack_activations(x)).sum(axis=1)
    tolerance = (1 + k // SHERRY.block) * 2.0**-24 * (scales * magnitudes).sum()
    result = ggml.vec_dot(kernel, misaligned(row), x)
    assert abs(result - (scales * sums).sum()) <= tolerance
    assert result == ggml.vec_dot("generic", row, x)  # all add up in one order


def test_vec_dot_of_zero_blocks(ggml: Any, kernel: str) -> None:
    x = ggml.activations(kernel, np.ones(256, np.float32))
    assert ggml.vec_dot(kernel, np.zeros(44, np.uint8), x) == 0


@pytest.mark.parametrize("k", LENGTHS)
def test_activations(ggml: Any, kernel: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (rng.standard_normal(k) * rng.choice([1e-3, 1, 1e3])).astype(np.float32)
    x[5] = -0.0
    d = np.abs(x.reshape(-1, SHERRY.block)).max(axis=1)
    expected = ggml.pack_activations(
        np.rint(x.reshape(-1, SHERRY.block) * (np.float32(127) / d)[:, None]).astype(np.int8)
    )
    expected["d"] = d / np.float32(127)
    np.testing.assert_array_equal(ggml.activations(kernel, x), expected)


def test_halves_are_rounded_to_even(ggml: Any, kernel: str) -> None:
    x = np.arange(SHERRY.block, dtype=np.float32) - 64 + np.float32(0.5)
    x[0] = 127  # the scale is 1
    expected = ggml.pack_activations(np.rint(x)[None].astype(np.int8))
    np.testing.assert_array_equal(ggml.activations(kernel, x), expected)


def test_edges_of_activations(ggml: Any, kernel: str) -> None:
    smallest = np.float32(2.0**-119)  # of those that are not taken for zero
    for tiny in (np.float32(1e-40), np.nextafter(smallest, np.float32(0))):
        assert not ggml.activations(kernel, np.full(SHERRY.block, tiny)).tobytes().strip(b"\0")
    quantized = ggml.activations(kernel, np.full(SHERRY.block, -smallest))
    assert (quantized["qs"] == -127).all()
    assert quantized["d"] == smallest / np.float32(127)
    huge = np.full(SHERRY.block, -3.4e38, np.float32)
    assert (ggml.activations(kernel, huge)["qs"] == -127).all()
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones(2 * SHERRY.block, np.float32)
        x[SHERRY.block + 77] = bad
        quantized = ggml.activations(kernel, x)
        assert np.isnan(ggml.vec_dot(kernel, random_row(256, 0), quantized))
        assert quantized["d"][0] == np.float32(1) / np.float32(127)
