"""SHERRY_2P in the runtime: the reference and rounding equal to NumPy, operators from rows and tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.sherry_2p import SHERRY_2P, pack_planes
from sherry_gguf.weights.two_planes import round_planes

pytestmark = pytest.mark.runtime

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BLOCK = SHERRY_2P.block


def random_blocks(*shape: int) -> U8:
    """shape [..., k] of weights -> blocks uint8[..., k/128*44]."""
    rng = np.random.default_rng(sum(shape))
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = rng.integers(0, CODES, (2, rows, k // 4), dtype=np.uint8)
    d = rng.uniform(0.01, 1, (2, rows, k // BLOCK)).astype(np.float16)
    return pack_planes(*codes, d.max(axis=0), d.min(axis=0)).reshape(*shape[:-1], -1)


def dequantize(packed: U8) -> F64:
    flat = SHERRY_2P.dequantize(packed.reshape(-1, packed.shape[-1])).astype(np.float64)
    return flat.reshape(*packed.shape[:-1], -1)


def assert_product(result: F32, w: F64, x: F64) -> None:
    """result[..., rows] of w[..., rows, k] and x[..., k]; the tolerance is that of test_operators.py, for two sums."""
    expected = np.einsum("...rk,...k->...r", w, x)
    tolerance = (4 + 2 * w.shape[-1] / BLOCK) * 2.0**-23 * np.einsum("...rk,...k->...r", np.abs(w), np.abs(x))
    assert (np.abs(result.reshape(expected.shape) - expected) <= tolerance).all()


@pytest.fixture(params=[False, True], ids=["rows", "tiles"])
def tiles(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("k", [128, 384])
def test_reference_equals_numpy(ggml: Any, two_planes: Any, k: int) -> None:
    packed = random_blocks(20, k)
    weights = SHERRY_2P.dequantize(packed)
    importance = np.random.default_rng(0).exponential(1, k).astype(np.float32)
    np.testing.assert_array_equal(ggml.dequantize(packed, two_planes), weights)
    np.testing.assert_array_equal(ggml.quantize(weights, kind=two_planes), packed)
    np.testing.assert_array_equal(ggml.quantize(weights, importance, kind=two_planes), packed)
    assert ggml.is_valid(two_planes.type_id, packed)


def test_equal_scales_and_single_planes(ggml: Any, two_planes: Any) -> None:
    """Where there are several ways to write the weights, C takes the one that NumPy takes."""
    codes = np.random.default_rng(0).integers(0, CODES, (2, 8, 64), dtype=np.uint8)
    d = np.random.default_rng(1).uniform(0.01, 1, (8, 2)).astype(np.float16)
    for d1 in (d, d / 2, 0 * d, (d / 4000).astype(np.float16)):
        weights = SHERRY_2P.dequantize(pack_planes(*codes, d, d1))
        np.testing.assert_array_equal(ggml.quantize(weights, kind=two_planes), SHERRY_2P.pack(weights))


@pytest.mark.parametrize("case", ["alike", "importance", "zeros", "outliers"])
def test_rounding_equals_numpy(ggml: Any, two_planes: Any, case: str) -> None:
    rng = np.random.default_rng(3)
    weights = (0.02 * rng.standard_normal((16, 512))).astype(np.float32)
    importance = None if case == "alike" else rng.lognormal(0, 2, 512).astype(np.float32)
    if importance is not None and case == "zeros":
        importance[:128] = importance[200:250] = 0
        weights[3] = 0
        weights[5, 100:] = 0
    elif case == "outliers":
        weights = rng.standard_t(2, weights.shape).astype(np.float32)
    packed = ggml.quantize(weights, importance, kind=two_planes)
    np.testing.assert_array_equal(packed, round_planes(weights, importance))
    m = np.ones(512) if importance is None else importance
    wrong, all_of_it = m * (SHERRY_2P.dequantize(packed) - weights) ** 2, m * weights**2
    assert wrong.sum() < 0.07 * all_of_it.sum()


def test_importance_lowers_the_weighted_error(ggml: Any, two_planes: Any) -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((8, 256)).astype(np.float32)
    importance = rng.lognormal(0, 2, 256).astype(np.float32)
    losses = [
        (importance * (SHERRY_2P.dequantize(ggml.quantize(weights, m, kind=two_planes)) - weights) ** 2).sum()
        for m in (importance, None)
    ]
    assert losses[0] < 0.7 * losses[1]


def test_damaged_scales(ggml: Any, two_planes: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for high, said in ((0x7C, "not finite"), (0xBC, "negative")):
        packed = random_blocks(1, 256)
        packed[0, 44 + 43] = high
        assert not ggml.is_valid(two_planes.type_id, packed)
        assert f"scale of block 3 is {said}" in capfd.readouterr().err


# tokens: 1 to 4 of one call, 16 whose tables are shared, more in panels of 8
@pytest.mark.parametrize("n", [1, 4, 5, 16, 31])
@pytest.mark.parametrize("k", [128, 384, 2304])
def test_mul_mat(
    ggml: Any, two_planes: Any, dequantized_activations: Callable[[F32], F64], tiles: bool, k: int, n: int
) -> None:
    packed = random_blocks(65, k)
    x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    result = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=two_planes)
    assert_product(result, dequantize(packed)[None], dequantized_activations(x))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 300])
@pytest.mark.parametrize("k", [128, 2304])
def test_rows_and_tiles_give_the_same_bits(ggml: Any, two_planes: Any, rows: int, k: int) -> None:
    packed = random_blocks(2, rows, k)
    for n in (1, 5, 20):
        x = np.random.default_rng(n).standard_normal((2, n, k)).astype(np.float32)
        from_rows = ggml.compute("mul_mat", packed, x, kind=two_planes)
        for threads in (1, 3):
            in_tiles = ggml.compute("mul_mat", packed, x, tiles=True, threads=threads, kind=two_planes)
            np.testing.assert_array_equal(from_rows, in_tiles)


def test_a_second_plane_of_zeros_changes_no_bit(ggml: Any, two_planes: Any) -> None:
    codes = np.random.default_rng(0).integers(0, CODES, (2, 70, 96), dtype=np.uint8)
    d = np.random.default_rng(1).uniform(0.01, 1, (70, 3)).astype(np.float16)
    packed = pack_planes(*codes, d, 0 * d)
    one_plane = np.ascontiguousarray(packed.reshape(70, 3, 44)[:, :, :22]).reshape(70, -1)
    x = np.random.default_rng(2).standard_normal((3, 384)).astype(np.float32)
    two = ggml.compute("mul_mat", packed, x, tiles=True, kind=two_planes)
    np.testing.assert_array_equal(two, ggml.compute("mul_mat", one_plane, x, tiles=True))


@pytest.mark.parametrize("n", [1, 33])
def test_mul_mat_id(
    ggml: Any, two_planes: Any, dequantized_activations: Callable[[F32], F64], tiles: bool, n: int
) -> None:
    rng = np.random.default_rng(n)
    packed = random_blocks(5, 80, 256)
    x = rng.standard_normal((n, 2, 256)).astype(np.float32)
    experts = np.stack([1 + rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)
    result = ggml.compute("mul_mat_id", packed, x, experts, tiles=tiles, kind=two_planes)
    assert_product(result, dequantize(packed)[experts], dequantized_activations(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_token(ggml: Any, two_planes: Any, tiles: bool, bad: float) -> None:
    packed = random_blocks(64, 256)
    x = np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32)
    good = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=two_planes).reshape(3, 64)
    x[1, 40] = bad
    result = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=two_planes).reshape(3, 64)
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[::2], good[::2])


def test_get_rows_and_out_prod(ggml: Any, two_planes: Any) -> None:
    packed = random_blocks(50, 256)
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = ggml.compute("get_rows", packed, rows, kind=two_planes)
    np.testing.assert_array_equal(result.reshape(5, 256), SHERRY_2P.dequantize(packed)[rows])
    same = ggml.compute("out_prod", packed[:8], np.eye(8, dtype=np.float32), kind=two_planes)
    np.testing.assert_array_equal(same.reshape(8, 256), SHERRY_2P.dequantize(packed[:8]))


@pytest.mark.parametrize("shape", [(31,), (33,), (2, 2, 70)], ids=str)
def test_a_tensor_is_read_and_written_in_pieces(ggml: Any, two_planes: Any, shape: tuple[int, ...]) -> None:
    data = random_blocks(*shape, 384).reshape(-1)
    rng = np.random.default_rng(0)
    with ggml.tiled((*shape, 3 * two_planes.block_bytes), two_planes) as tensor:
        tensor.set(0, data)
        np.testing.assert_array_equal(tensor.get(0, data.size), data)
        tensor.set(0, np.zeros_like(data))
        cuts = np.unique([0, data.size, *rng.integers(0, data.size, 20)])
        for begin, end in rng.permutation(np.stack([cuts[:-1], cuts[1:]], axis=1)):
            tensor.set(int(begin), data[begin:end])
        for begin, end in np.sort(rng.integers(0, data.size + 1, (20, 2)), axis=1):
            np.testing.assert_array_equal(tensor.get(int(begin), int(end - begin)), data[begin:end])
