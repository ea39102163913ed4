"""SHERRY_G32 in the runtime: the reference equal to NumPy, operators from rows and tiles, llama-quantize."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf.formats.groups import CODES
from sherry_gguf.formats.sherry_g32 import BLOCKS, SHERRY_G32

pytestmark = pytest.mark.runtime

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BLOCK = SHERRY_G32.block
LENGTHS = [32, 96, 128, 160, 576, 2304]  # of rows: parts of 128, some, and more than a thread makes tables of at a time


def random_blocks(*shape: int) -> U8:
    """shape [..., k] of weights -> blocks uint8[..., k/32*7]."""
    rng = np.random.default_rng(sum(shape))
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    codes = rng.integers(0, CODES, (rows, k // 4), dtype=np.uint8)
    packed = BLOCKS.pack(codes, rng.uniform(0.01, 1, (rows, k // BLOCK)).astype(np.float32))
    return packed.reshape(*shape[:-1], -1)


def dequantize(packed: U8) -> F64:
    flat = SHERRY_G32.dequantize(packed.reshape(-1, packed.shape[-1])).astype(np.float64)
    return flat.reshape(*packed.shape[:-1], -1)


def rounded(x: F32) -> F64:
    """float32[..., k] -> the values that the kernels multiply with: 8 bits, and a scale for 32."""
    parts = x.reshape(-1, BLOCK)
    d = np.abs(parts).max(axis=1, keepdims=True) / np.float32(127)
    q = np.rint(parts * (np.float32(127) / np.abs(parts).max(axis=1, keepdims=True)))
    return (q * d.astype(np.float64)).reshape(x.shape)


def assert_product(result: F32, w: F64, x: F64) -> None:
    """result[..., rows] of w[..., rows, k] and x[..., k]; the tolerance is that of test_operators.py."""
    expected = np.einsum("...rk,...k->...r", w, x)
    tolerance = (1 + w.shape[-1] / BLOCK) * 2.0**-24 * np.einsum("...rk,...k->...r", np.abs(w), np.abs(x))
    assert (np.abs(result.reshape(expected.shape) - expected) <= tolerance).all()


@pytest.fixture(params=[False, True], ids=["rows", "tiles"])
def tiles(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("k", [32, 96, 576])
def test_reference_equals_numpy(ggml: Any, g32: Any, k: int) -> None:
    packed = random_blocks(20, k)
    weights = SHERRY_G32.dequantize(packed)
    np.testing.assert_array_equal(ggml.dequantize(packed, g32), weights)
    np.testing.assert_array_equal(ggml.quantize(weights, kind=g32), packed)
    importance = np.random.default_rng(0).exponential(1, k).astype(np.float32)
    np.testing.assert_array_equal(ggml.quantize(weights, importance, kind=g32), packed)
    assert ggml.changed_groups(weights, g32) == 0
    assert ggml.is_valid(g32.type_id, packed)


def test_latents_become_the_trainer_s_values(ggml: Any, g32: Any) -> None:
    latents = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    groups = latents.reshape(-1, 8, 4)
    kept = np.ones(groups.shape, bool)
    np.put_along_axis(kept, np.abs(groups).argmin(axis=2, keepdims=True), False, axis=2)
    alpha = np.where(kept, np.abs(groups), 0).sum(axis=(1, 2), dtype=np.float64) / 24
    scales = alpha.astype(np.float32).astype(np.float16).astype(np.float32)
    expected = np.where(kept, np.sign(groups), 0) * scales[:, None, None]
    np.testing.assert_array_equal(ggml.dequantize(ggml.quantize(latents, kind=g32), g32), expected.reshape(8, 96))


def test_damaged_scales(ggml: Any, g32: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for high, said in ((0x7C, "not finite"), (0xBC, "negative")):
        packed = random_blocks(1, 64)
        packed[0, 13] = high
        assert not ggml.is_valid(g32.type_id, packed)
        assert f"ggml_validate_sherry_g32: scale of block 1 is {said}" in capfd.readouterr().err


# tokens: 1 to 4 of one call, 16 whose tables are shared, more in panels of 8
@pytest.mark.parametrize("n", [1, 4, 5, 16, 31])
@pytest.mark.parametrize("k", LENGTHS)
def test_mul_mat(ggml: Any, g32: Any, tiles: bool, k: int, n: int) -> None:
    packed = random_blocks(65, k)
    x = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    assert_product(ggml.compute("mul_mat", packed, x, tiles=tiles, kind=g32), dequantize(packed)[None], rounded(x))


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 300])
@pytest.mark.parametrize("k", [32, 160, 2304])
def test_rows_and_tiles_give_the_same_bits(ggml: Any, g32: Any, rows: int, k: int) -> None:
    packed = random_blocks(2, rows, k)
    for n in (1, 5, 20):
        x = np.random.default_rng(n).standard_normal((2, n, k)).astype(np.float32)
        from_rows = ggml.compute("mul_mat", packed, x, kind=g32)
        for threads in (1, 3):
            in_tiles = ggml.compute("mul_mat", packed, x, tiles=True, threads=threads, kind=g32)
            np.testing.assert_array_equal(from_rows, in_tiles)


@pytest.mark.parametrize("n", [1, 33])
def test_mul_mat_id(ggml: Any, g32: Any, tiles: bool, n: int) -> None:
    rng = np.random.default_rng(n)
    packed = random_blocks(5, 80, 160)
    x = rng.standard_normal((n, 2, 160)).astype(np.float32)
    experts = np.stack([1 + rng.permutation(4)[:2] for _ in range(n)]).astype(np.int32)
    result = ggml.compute("mul_mat_id", packed, x, experts, tiles=tiles, kind=g32)
    assert_product(result, dequantize(packed)[experts], rounded(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_token(ggml: Any, g32: Any, tiles: bool, bad: float) -> None:
    packed = random_blocks(64, 96)
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    good = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=g32).reshape(3, 64)
    x[1, 40] = bad
    result = ggml.compute("mul_mat", packed, x, tiles=tiles, kind=g32).reshape(3, 64)
    assert np.isnan(result[1]).all()
    np.testing.assert_array_equal(result[::2], good[::2])


def test_get_rows_and_out_prod(ggml: Any, g32: Any) -> None:
    packed = random_blocks(50, 96)
    rows = np.array([49, 0, 7, 7, 23], dtype=np.int32)
    result = ggml.compute("get_rows", packed, rows, kind=g32)
    np.testing.assert_array_equal(result.reshape(5, 96), SHERRY_G32.dequantize(packed)[rows])
    same = ggml.compute("out_prod", packed[:8], np.eye(8, dtype=np.float32), kind=g32)
    np.testing.assert_array_equal(same.reshape(8, 96), SHERRY_G32.dequantize(packed[:8]))


@pytest.mark.parametrize("k", [32, 160, 256])
@pytest.mark.parametrize("shape", [(31,), (33,), (2, 2, 70)], ids=str)
def test_a_tensor_is_read_and_written_in_pieces(ggml: Any, g32: Any, shape: tuple[int, ...], k: int) -> None:
    data = random_blocks(*shape, k).reshape(-1)
    rng = np.random.default_rng(0)
    with ggml.tiled((*shape, k // BLOCK * g32.block_bytes), g32) as tensor:
        tensor.set(0, data)
        np.testing.assert_array_equal(tensor.get(0, data.size), data)
        tensor.set(0, np.zeros_like(data))
        cuts = np.unique([0, data.size, *rng.integers(0, data.size, 20)])
        for begin, end in rng.permutation(np.stack([cuts[:-1], cuts[1:]], axis=1)):
            tensor.set(int(begin), data[begin:end])
        for begin, end in np.sort(rng.integers(0, data.size + 1, (20, 2)), axis=1):
            np.testing.assert_array_equal(tensor.get(int(begin), int(end - begin)), data[begin:end])
