"""The operators of SHERRY_G32 and SHERRY_2P, from rows and tiles. test_operators.py has those of SHERRY, and more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from operands import F32, F64, U8, assert_product, dequantize, random_blocks

from sherry_gguf.formats.sherry_2p import SHERRY_2P
from sherry_gguf.formats.sherry_g32 import SHERRY_G32
from sherry_gguf.formats.tensor_type import TensorType

pytestmark = pytest.mark.runtime

# of rows: whole parts of 128 and others, and more than a thread makes tables of at a time
LENGTHS = {SHERRY_G32: [32, 96, 128, 160, 576, 2304], SHERRY_2P: [128, 384, 2304]}
ALL_LENGTHS = [pytest.param(of, k, id=f"{of.name}-{k}") for of, lengths in LENGTHS.items() for k in lengths]


@dataclass(frozen=True)
class Operands:
    """A type's weights, and the values float64[..., k] that its kernels take activations float32[..., k] for."""

    ggml: Any
    of: TensorType
    kind: Any  # a Kind of conftest.py
    rounded: Callable[[F32], F64]

    def random(self, *shape: int) -> U8:
        return random_blocks(self.of, *shape)

    def compute(self, operator: str, *operands: Any, **options: Any) -> F32:
        result: F32 = self.ggml.compute(operator, *operands, kind=self.kind, **options)
        return result


def rounded_by_32(x: F32) -> F64:
    """8 bits, and a scale for 32."""
    parts = x.reshape(-1, 32)
    d = np.abs(parts).max(axis=1, keepdims=True) / np.float32(127)
    q = np.rint(parts * (np.float32(127) / np.abs(parts).max(axis=1, keepdims=True)))
    return (q * d.astype(np.float64)).reshape(x.shape)


@pytest.fixture(params=LENGTHS, ids=lambda of: of.name)
def by(request: pytest.FixtureRequest, ggml: Any, kinds: Any, dequantized_activations: Any) -> Operands:
    of: TensorType = request.param
    return Operands(ggml, of, kinds[of.outtype], rounded_by_32 if of.block == 32 else dequantized_activations)


@pytest.fixture
def k(by: Operands) -> int:
    """Weights of a row, where one length will do: with a part of a block's group of rows for SHERRY_G32."""
    return 160 if by.of is SHERRY_G32 else 256


# tokens: 1 to 4 of one call, 16 whose tables are shared, more in panels of 8
@pytest.mark.parametrize("n", [1, 4, 5, 16, 31])
@pytest.mark.parametrize(("by", "length"), ALL_LENGTHS, indirect=["by"])
def test_mul_mat(by: Operands, tiles: bool, length: int, n: int) -> None:
    packed = by.random(65, length)
    x = np.random.default_rng(n).standard_normal((n, length)).astype(np.float32)
    assert_product(by.of, by.compute("mul_mat", packed, x, tiles=tiles), dequantize(by.of, packed)[None], by.rounded(x))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 300])
@pytest.mark.parametrize(("by", "length"), ALL_LENGTHS, indirect=["by"])
def test_rows_and_tiles_give_the_same_bits(by: Operands, rows: int, length: int) -> None:
    packed = by.random(2, rows, length)
    for n in (1, 5, 20):
        x = np.random.default_rng(n).standard_normal((2, n, length)).astype(np.float32)
        from_rows = by.compute("mul_mat", packed, x)
        for threads in (1, 3):
            in_tiles = by.compute("mul_mat", packed, x, tiles=True, threads=threads)
            np.testing.assert_array_equal(from_rows, in_tiles)


@pytest.mark.parametrize("n", [1, 33])
def test_mul_mat_id(by: Operands, tiles: bool, k: int, n: int) -> None:
    rng = np.random.default_rng(n)
    packed = by.random(5, 80, k)
    x = rng.standard_normal((n, 2, k)).astype(np.float32)
    experts = np.stack([1 + rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)
    result = by.compute("mul_mat_id", packed, x, experts, tiles=tiles)
    assert_product(by.of, result, dequantize(by.of, packed)[experts], by.rounded(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_token(by: Operands, tiles: bool, k: int, bad: float) -> None:
    packed = by.random(64, k)
    x = np.random.default_rng(0).standard_normal((3, k)).astype(np.float32)
    good = by.compute("mul_mat", packed, x, tiles=tiles).reshape(3, 64)
    x[1, 40] = bad
    result = by.compute("mul_mat", packed, x, tiles=tiles).reshape(3, 64)
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[::2], good[::2])


def test_get_rows_and_out_prod(by: Operands, k: int) -> None:
    packed = by.random(50, k)
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = by.compute("get_rows", packed, rows)
    np.testing.assert_array_equal(result.reshape(5, k), by.of.dequantize(packed)[rows])
    same = by.compute("out_prod", packed[:8], np.eye(8, dtype=np.float32))
    np.testing.assert_array_equal(same.reshape(8, k), by.of.dequantize(packed[:8]))
