"""Products from tiles at the edges: matrices that begin anywhere, activations that are not finite, what is refused."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from graphs import F16, F32, I32, graph

from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, GROUP, PATTERNS
from sherry_gguf.formats.sherry import SHERRY

pytestmark = pytest.mark.runtime


def random_matrices(*shape: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """shape [..., k] -> blocks of scale 1 uint8[..., k/128*22] and the weights."""
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = np.random.default_rng(sum(shape)).integers(0, CODES, (rows, k // GROUP), dtype=np.uint8)
    packed = sherry.BLOCKS.pack(codes, np.ones((rows, k // SHERRY.block), np.float32))
    return packed.reshape(*shape[:-1], -1), PATTERNS[codes].astype(np.int64).reshape(shape)


def random_integers(*shape: int) -> npt.NDArray[np.int64]:
    """Activations that are quantized to themselves: the largest of each block is 127, its scale 1."""
    x = np.random.default_rng(sum(shape)).integers(-127, 128, shape)
    x[..., :: SHERRY.block] = 127
    return x


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("rows", [33, 95, 161])  # times 22 bytes: the next matrix is not even aligned to 4
def test_matrices_begin_anywhere(ggml: Any, rows: int, n: int, threads: int) -> None:
    packed, weights = random_matrices(3, rows, SHERRY.block)
    x = random_integers(3, n, SHERRY.block)
    result = ggml.compute("mul_mat", packed, x.astype(np.float32), tiles=True, threads=threads)
    np.testing.assert_array_equal(result, np.einsum("mrk,mnk->mnr", weights, x).reshape(-1))

    experts = np.random.default_rng(n).integers(0, 3, (n, 1)).astype(np.int32)
    result = ggml.compute("mul_mat_id", packed, x[0][:, None].astype(np.float32), experts, tiles=True, threads=threads)
    np.testing.assert_array_equal(result, np.einsum("nrk,nk->nr", weights[experts[:, 0]], x[0]).reshape(-1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, 20])
def test_what_is_not_finite_stays_in_its_token(ggml: Any, n: int, bad: float) -> None:
    packed, weights = random_matrices(70, 3 * SHERRY.block)
    integers = random_integers(n, 3 * SHERRY.block)
    x = integers.astype(np.float32)
    x[1, 200] = bad
    expected = (integers @ weights.T).astype(np.float64)
    expected[1] = np.nan
    result = ggml.compute("mul_mat", packed, x, tiles=True)
    np.testing.assert_array_equal(result.reshape(n, 70), expected)


def test_products_with_floats_are_supported(ggml: Any, kinds: dict[str, Any]) -> None:
    with graph(ggml, kinds["sherry"], 4, 64, 256) as g:
        assert g.is_supported(g.operator("mul_mat", g.weights, g.tensor(F32, 256, 5, 4)))
        assert g.is_supported(g.operator("mul_mat_id", g.weights, g.tensor(F32, 256, 2, 5), g.tensor(I32, 2, 5)))


def test_other_activations_are_not_supported(ggml: Any, kinds: dict[str, Any]) -> None:
    with graph(ggml, kinds["sherry"], 64, 256) as g:
        assert not g.is_supported(g.operator("mul_mat", g.weights, g.tensor(F16, 256, 5)))


def test_a_view_is_not_supported(ggml: Any, kinds: dict[str, Any]) -> None:
    """It could begin inside a tile."""
    with graph(ggml, kinds["sherry"], 64, 256) as g:
        sizes = ctypes.c_int64(256), ctypes.c_int64(8), ctypes.c_size_t(2 * SHERRY.block_bytes), ctypes.c_size_t(0)
        view = g.operator("view_2d", g.weights, *sizes)
        assert ggml.base.ggml_backend_view_init(view) == 0
        assert not g.is_supported(g.operator("mul_mat", view, g.tensor(F32, 256, 5)))


def test_operators_that_read_rows_are_not_supported(ggml: Any, kinds: dict[str, Any]) -> None:
    with graph(ggml, kinds["sherry"], 64, 256) as g:
        assert not g.is_supported(g.operator("get_rows", g.weights, g.tensor(I32, 5)))
        assert not g.is_supported(g.operator("cpy", g.weights, g.tensor(F32, 256, 64)))
        assert not g.is_supported(g.operator("out_prod", g.weights, g.tensor(F32, 5, 64)))
