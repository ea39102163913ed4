"""Operators of the CPU backend on SHERRY, which lies in rows or in tiles of 32 rows, against float64 of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from operands import assert_product, dequantize, random_blocks

from sherry_gguf.formats.sherry import SHERRY

pytestmark = pytest.mark.runtime

Round = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


# tokens: 1 to 4 of one call, 16 whose tables are shared, more in panels of 8
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 64])
@pytest.mark.parametrize("k", [128, 384, 2304])  # 2304: more blocks than a thread makes tables of at a time
def test_mul_mat(ggml: Any, dequantized_activations: Round, tiles: bool, k: int, n: int) -> None:
    packed = random_blocks(SHERRY, 65, k)
    x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    result = ggml.compute("mul_mat", packed, x, tiles=tiles)
    assert_product(SHERRY, result, dequantize(SHERRY, packed)[None], dequantized_activations(x))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100, 300])
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_mul_mat_is_the_same_whoever_does_it(
    ggml: Any, dequantized_activations: Round, tiles: bool, rows: int, threads: int
) -> None:
    packed = random_blocks(SHERRY, rows, 384)
    for n in (1, 20):
        x = np.random.default_rng(n).standard_normal((n, 384)).astype(np.float32)
        result = ggml.compute("mul_mat", packed, x, tiles=tiles, threads=threads)
        assert_product(SHERRY, result, dequantize(SHERRY, packed)[None], dequantized_activations(x))
        np.testing.assert_array_equal(result, ggml.compute("mul_mat", packed, x, tiles=tiles, threads=2))


@pytest.mark.parametrize("rows", [31, 32, 33, 300])
@pytest.mark.parametrize("k", [128, 2304])
def test_rows_and_tiles_give_the_same_bits(ggml: Any, rows: int, k: int) -> None:
    packed = random_blocks(SHERRY, 2, rows, k)
    for n in (1, 5, 20):
        x = np.random.default_rng(n).standard_normal((2, n, k)).astype(np.float32)
        from_rows = ggml.compute("mul_mat", packed, x)
        np.testing.assert_array_equal(from_rows, ggml.compute("mul_mat", packed, x, tiles=True))
    experts = np.arange(8, dtype=np.int32).reshape(4, 2) % 2
    from_rows = ggml.compute("mul_mat_id", packed, x[:1, :4].transpose(1, 0, 2), experts)
    in_tiles = ggml.compute("mul_mat_id", packed, x[:1, :4].transpose(1, 0, 2), experts, tiles=True)
    np.testing.assert_array_equal(from_rows, in_tiles)


def test_mul_mat_of_no_activations(ggml: Any, tiles: bool) -> None:
    packed, x = random_blocks(SHERRY, 64, 256), np.zeros((0, 256), np.float32)
    assert ggml.compute("mul_mat", packed, x, tiles=tiles).size == 0


def test_mul_mat_of_fewer_matrices_than_activations(ggml: Any, dequantized_activations: Round, tiles: bool) -> None:
    packed = random_blocks(SHERRY, 2, 48, 384)
    for n in (5, 20):
        x = np.random.default_rng(n).standard_normal((3, 4, n, 384)).astype(np.float32)
        result = ggml.compute("mul_mat", packed, x, tiles=tiles)
        repeated = np.repeat(dequantize(SHERRY, packed), 2, axis=0)  # matrices 0, 0, 1, 1
        assert_product(SHERRY, result, repeated[None, :, None], dequantized_activations(x))


# ggml's axes 0..3 are NumPy's 3..0
@pytest.mark.parametrize("axes", [(0, 2, 1, 3), (1, 0, 2, 3), (2, 0, 1, 3)])
def test_mul_mat_of_activations_that_are_not_contiguous(
    ggml: Any, dequantized_activations: Round, tiles: bool, axes: tuple[int, int, int, int]
) -> None:
    shape = np.zeros(4, int)
    shape[:] = [256, 5, 3, 2]  # of ggml, once permuted
    source = shape[list(axes)]  # axis i of what is stored is axis axes[i] of the result
    stored = np.random.default_rng(0).standard_normal(source[::-1]).astype(np.float32)
    x = np.empty(shape[::-1], np.float32)
    for index in np.ndindex(*source):
        permuted = np.zeros(4, int)
        permuted[list(axes)] = index
        x[tuple(permuted[::-1])] = stored[index[::-1]]
    packed = random_blocks(SHERRY, 80, 256)
    result = ggml.compute("mul_mat", packed, stored, tiles=tiles, permute=axes)
    assert_product(SHERRY, result, dequantize(SHERRY, packed)[None, None, None], dequantized_activations(x))


@pytest.mark.parametrize("n", [1, 33, 64])
@pytest.mark.parametrize("used", [1, 2], ids=["shared", "own"])  # activations: of a token, of each of its experts
def test_mul_mat_id(ggml: Any, dequantized_activations: Round, tiles: bool, n: int, used: int) -> None:
    rng = np.random.default_rng(n)
    packed = random_blocks(SHERRY, 5, 80, 384)
    x = rng.standard_normal((n, used, 384)).astype(np.float32)
    experts = np.stack([1 + rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)  # nobody uses the first one
    experts[0] = 3, 1
    result = ggml.compute("mul_mat_id", packed, x, experts, tiles=tiles)
    assert_product(SHERRY, result, dequantize(SHERRY, packed)[experts], dequantized_activations(x))

    # bit for bit what the expert's matrix alone gives
    result = result.reshape(n, 2, 80)
    for expert in (1, 3):
        alone = ggml.compute("mul_mat", packed[expert], x.reshape(-1, 384), tiles=tiles).reshape(n, used, 80)
        for token, place in np.argwhere(experts == expert):
            np.testing.assert_array_equal(result[token, place], alone[token, place % used])


def test_get_rows(ggml: Any) -> None:
    packed = random_blocks(SHERRY, 50, 640)
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = ggml.compute("get_rows", packed, rows)
    np.testing.assert_array_equal(result.reshape(5, 640), SHERRY.dequantize(packed)[rows])


def test_out_prod(ggml: Any) -> None:
    packed = random_blocks(SHERRY, 8, 256)
    same = ggml.compute("out_prod", packed, np.eye(8, dtype=np.float32))
    np.testing.assert_array_equal(same.reshape(8, 256), SHERRY.dequantize(packed))
