"""Operators of the CPU backend against float64 of the dequantized weights.

Tolerance: with activations rounded to int8 as the kernels round them, what is left is float32: four roundings of each
term, and one in each of the k/128 additions, of partial sums not larger than the sum of magnitudes (test_kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf import blocks
from sherry_gguf.format import BLOCK, CODES

pytestmark = pytest.mark.runtime

Round = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


def random_blocks(*shape: int) -> npt.NDArray[np.uint8]:
    """shape [..., k] of weights -> blocks uint8[..., k/128*22]."""
    rng = np.random.default_rng(sum(shape))
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = rng.integers(0, CODES, (rows, k // 4), dtype=np.uint8)
    packed = blocks.pack(codes, rng.uniform(0.01, 1, (rows, k // BLOCK)).astype(np.float32))
    return packed.reshape(*shape[:-1], -1)


def dequantize(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    flat = blocks.dequantize(packed.reshape(-1, packed.shape[-1])).astype(np.float64)
    return flat.reshape(*packed.shape[:-1], -1)


def assert_product(result: npt.NDArray[np.float32], w: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> None:
    """result[..., rows] of w[..., rows, k] and x[..., k]."""
    expected = np.einsum("...rk,...k->...r", w, x)
    tolerance = (4 + w.shape[-1] / BLOCK) * 2.0**-24 * np.einsum("...rk,...k->...r", np.abs(w), np.abs(x))
    assert (np.abs(result.reshape(expected.shape) - expected) <= tolerance).all()


@pytest.mark.parametrize("k", [128, 384, 640, 4224])
@pytest.mark.parametrize("n", [1, 33])
def test_mul_mat(ggml: Any, dequantized_activations: Round, k: int, n: int) -> None:
    packed = random_blocks(65, k)
    x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    result = ggml.compute("mul_mat", packed, x)
    assert_product(result, dequantize(packed)[None], dequantized_activations(x))


def test_mul_mat_of_fewer_matrices_than_activations(ggml: Any, dequantized_activations: Round) -> None:
    packed = random_blocks(2, 48, 384)
    x = np.random.default_rng(0).standard_normal((4, 5, 384)).astype(np.float32)
    result = ggml.compute("mul_mat", packed, x)
    repeated = np.repeat(dequantize(packed), 2, axis=0)  # matrices 0, 0, 1, 1
    assert_product(result, repeated[:, None], dequantized_activations(x))


@pytest.mark.parametrize("n", [1, 33])
def test_mul_mat_id(ggml: Any, dequantized_activations: Round, n: int) -> None:
    rng = np.random.default_rng(n)
    packed = random_blocks(4, 48, 384)
    x = rng.standard_normal((n, 1, 384)).astype(np.float32)
    experts = np.stack([rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)
    experts[0] = 3, 1  # not the first expert: its offset counts
    result = ggml.compute("mul_mat_id", packed, x, experts)
    assert_product(result, dequantize(packed)[experts], dequantized_activations(x))


def test_get_rows(ggml: Any) -> None:
    packed = random_blocks(50, 640)
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = ggml.compute("get_rows", packed, rows)
    np.testing.assert_array_equal(result.reshape(5, 640), blocks.dequantize(packed)[rows])


def test_out_prod(ggml: Any) -> None:
    packed = random_blocks(8, 256)
    same = ggml.compute("out_prod", packed, np.eye(8, dtype=np.float32))
    np.testing.assert_array_equal(same.reshape(8, 256), blocks.dequantize(packed))
