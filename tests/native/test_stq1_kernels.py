"""STQ1_0 by all kernels: vec_dot row by row, and tiles of SHERRY that its blocks are rearranged into."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import stq1_oracle as oracle

pytestmark = pytest.mark.runtime

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

LENGTHS = [256, 512, 768, 4096]


def misaligned(row: U8) -> U8:
    """A copy at an odd address."""
    room = np.empty(row.size + 2, dtype=np.uint8)
    start = 1 - room.ctypes.data % 2
    room[start : start + row.size] = row
    return room[start : start + row.size]


def random_matrices(*shape: int) -> tuple[U8, I64]:
    """shape [..., k] -> blocks of scale 1 uint8[..., k/256*42] and the weights."""
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = np.random.default_rng(sum(shape)).integers(0, 32, (rows, k // 4))
    packed = oracle.pack(codes, np.ones((rows, k // 256), np.float32))
    return packed.reshape(*shape[:-1], -1), oracle.ternary(codes).reshape(shape)


def random_integers(*shape: int) -> I64:
    """Activations that are quantized to themselves: the largest of each 128 is 127, its scale 1."""
    x = np.random.default_rng(sum(shape)).integers(-127, 128, shape)
    x[..., ::128] = 127
    return x


@pytest.mark.parametrize("extreme", [-127, -1, 0, 1, 127])
def test_integer_sums_of_every_code_in_every_position(ggml: Any, stq1_0: Any, kernel: Any, extreme: int) -> None:
    codes = np.add.outer(np.arange(32), np.arange(64)) % 32
    row = oracle.pack(codes, np.ones((32, 1), np.float32)).reshape(-1)
    weights = oracle.ternary(codes).reshape(64, 128)  # halves of blocks
    for lanes in (
        np.full((64, 128), extreme, np.int8),
        (weights * extreme).astype(np.int8),  # the largest sums there are: 96 * 127
        np.random.default_rng(0).integers(-127, 128, (64, 128)).astype(np.int8),
    ):
        x = ggml.pack_activations(lanes, stq1_0)
        np.testing.assert_array_equal(
            ggml.integer_sums(kernel, misaligned(row), x, stq1_0), (weights * lanes).sum(axis=1)
        )


@pytest.mark.parametrize("k", LENGTHS)
def test_vec_dot(ggml: Any, stq1_0: Any, kernel: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    codes, d = rng.integers(0, 32, (1, k // 4)), rng.uniform(0.01, 1, (1, k // 256)).astype(np.float16)
    row = oracle.pack(codes, d.astype(np.float32))[0]
    x = ggml.activations(kernel, (rng.standard_normal(k) * 5).astype(np.float32), stq1_0)
    products = oracle.ternary(codes).reshape(-1, 128) * ggml.unpack_activations(x, stq1_0)
    np.testing.assert_array_equal(ggml.integer_sums(kernel, row, x, stq1_0), products.sum(axis=1))
    scales = np.repeat(d[0], 2).astype(np.float64) * x["d"]
    # float32: a term is rounded in the product of its scales, and with each of the k/128 half blocks that are added, to
    # partial sums that do not exceed the sum of magnitudes
    tolerance = (1 + k // 128) * 2.0**-24 * (scales * np.abs(products).sum(axis=1)).sum()
    result = ggml.vec_dot(kernel, misaligned(row), x, stq1_0)
    assert abs(result - (scales * products.sum(axis=1)).sum()) <= tolerance
    assert result == ggml.vec_dot("generic", row, x, stq1_0)  # all add up in one order


@pytest.mark.parametrize("k", [128, *LENGTHS])  # half a block is quantized by itself
def test_activations(ggml: Any, stq1_0: Any, kernel: Any, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (rng.standard_normal(k) * rng.choice([1e-3, 1, 1e3])).astype(np.float32)
    d = np.abs(x.reshape(-1, 128)).max(axis=1)
    lanes = np.rint(x.reshape(-1, 128) * (np.float32(127) / d)[:, None]).astype(np.int8)
    expected = ggml.pack_activations(lanes, stq1_0)
    expected["d"] = d / np.float32(127)
    np.testing.assert_array_equal(ggml.activations(kernel, x, stq1_0), expected)


def test_edges_of_activations(ggml: Any, stq1_0: Any, kernel: Any) -> None:
    for value in (0, 1e-40, -(2.0**-119), -3.4e38, np.nan, np.inf, -np.inf):
        x = np.ones(512, np.float32)
        x[128 + 77], x[256:384] = value, value
        expected = ggml.activations("generic", x, stq1_0)
        assert ggml.activations(kernel, x, stq1_0).tobytes() == expected.tobytes()
        assert np.isnan(expected["d"][1]) == (not np.isfinite(value))


def test_tiles_take_44_bytes_a_block(ggml: Any, stq1_0: Any) -> None:
    with ggml.tiled((33, 3 * 42), stq1_0) as tensor:
        ggml.base.ggml_backend_buft_get_alloc_size.restype = ctypes.c_size_t
        buffer_type = ggml.buffer_type("CPU_SHERRY")
        size = ggml.base.ggml_backend_buft_get_alloc_size(buffer_type, ctypes.c_void_p(tensor.handle))
        assert size == 33 * 3 * 44


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 20])
@pytest.mark.parametrize("rows", [1, 32, 65, 161])
def test_mul_mat(ggml: Any, stq1_0: Any, tiles: bool, rows: int, n: int, threads: int) -> None:
    packed, weights = random_matrices(rows, 768)
    x = random_integers(n, 768)
    result = ggml.compute("mul_mat", packed, x.astype(np.float32), tiles=tiles, threads=threads, kind=stq1_0)
    np.testing.assert_array_equal(result.reshape(n, rows), x @ weights.T)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_mul_mat_of_long_rows(ggml: Any, stq1_0: Any, tiles: bool, n: int) -> None:
    packed, weights = random_matrices(70, 2304)  # more blocks than a thread makes tables of at a time
    x = random_integers(n, 2304)
    result = ggml.compute("mul_mat", packed, x.astype(np.float32), tiles=tiles, kind=stq1_0)
    np.testing.assert_array_equal(result.reshape(n, 70), x @ weights.T)


def test_mul_mat_of_fewer_matrices_than_activations(ggml: Any, stq1_0: Any, tiles: bool) -> None:
    packed, weights = random_matrices(2, 3, 45, 512)
    x = random_integers(2, 6, 7, 512)
    result = ggml.compute("mul_mat", packed, x.astype(np.float32), tiles=tiles, kind=stq1_0)
    expected = np.einsum("bmrk,bmnk->bmnr", np.repeat(weights, 2, axis=1), x)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


@pytest.mark.parametrize("n", [1, 2, 20])
@pytest.mark.parametrize("rows", [32, 80, 95])
@pytest.mark.parametrize("used", [1, 2], ids=["shared", "own"])  # activations: of a token, of each of its experts
def test_mul_mat_id(ggml: Any, stq1_0: Any, tiles: bool, rows: int, n: int, used: int) -> None:
    rng = np.random.default_rng(n)
    packed, weights = random_matrices(5, rows, 512)
    x = random_integers(n, used, 512)
    experts = np.stack([1 + rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)  # nobody uses the first one
    result = ggml.compute("mul_mat_id", packed, x.astype(np.float32), experts, tiles=tiles, kind=stq1_0)
    expected = np.einsum("nerk,nek->ner", weights[experts], np.broadcast_to(x, (n, 2, 512)))
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def test_scales(ggml: Any, stq1_0: Any) -> None:
    """Rows and tiles, of the same blocks and activations: as close to float64 as float32 is."""
    rng = np.random.default_rng(0)
    codes, d = rng.integers(0, 32, (65, 192)), rng.uniform(0.01, 1, (65, 3)).astype(np.float16)
    packed = oracle.pack(codes, d.astype(np.float32))
    x = rng.standard_normal((5, 768)).astype(np.float32)
    q = ggml.activations("generic", x.reshape(-1), stq1_0)
    values = (ggml.unpack_activations(q, stq1_0) * q["d"].astype(np.float64)[:, None]).reshape(5, 768)
    w = oracle.dequantize(packed).astype(np.float64)
    tolerance = (1 + 6) * 2.0**-24 * (np.abs(values) @ np.abs(w).T)  # as of vec_dot, with six half blocks
    for tiles in (False, True):
        result = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=stq1_0).reshape(5, 65)
        assert (np.abs(result - values @ w.T) <= tolerance).all()


def test_get_rows(ggml: Any, stq1_0: Any) -> None:
    packed = random_matrices(50, 768)[0]
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = ggml.compute("get_rows", packed, rows, kind=stq1_0)
    np.testing.assert_array_equal(result.reshape(5, 768), oracle.dequantize(packed)[rows])


def test_out_prod(ggml: Any, stq1_0: Any) -> None:
    packed = random_matrices(8, 256)[0]
    same = ggml.compute("out_prod", packed, np.eye(8, dtype=np.float32), kind=stq1_0)
    np.testing.assert_array_equal(same.reshape(8, 256), oracle.dequantize(packed))
