"""Tiles of 32 rows: the kernels that multiply them, and the buffer that keeps tensors in them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sherry_gguf.formats import sherry
from sherry_gguf.formats.groups import CODES, PATTERNS
from sherry_gguf.formats.sherry import SHERRY

pytestmark = pytest.mark.runtime

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

TILE_ROWS = 32
TILE_BYTES = TILE_ROWS * SHERRY.block_bytes
GROUPS = 32


def aligned(size: int, offset: int = 0) -> U8:
    """0xCC at an address that is ``offset`` more than a multiple of 64."""
    room = np.full(size + 128, 0xCC, dtype=np.uint8)
    start = -room.ctypes.data % 64 + offset
    return room[start : start + size]


def random_rows(rows: int, n_blocks: int, seed: int = 0) -> U8:
    """Any bytes: every code, and any bits as scales."""
    return np.random.default_rng(seed).integers(0, 256, (rows, n_blocks * SHERRY.block_bytes), dtype=np.uint8)


def pack(kernel: Any, rows: U8, offset: int = 0) -> U8:
    """uint8[32*tiles, row_bytes] -> tiles, one after the other"""
    n_blocks = rows.shape[1] // SHERRY.block_bytes
    out = aligned(rows.size, offset)
    for i in range(rows.size // TILE_BYTES):
        first = rows[i // n_blocks * TILE_ROWS :, i % n_blocks * SHERRY.block_bytes :]
        kernel.pack(first.ctypes.data, n_blocks, out[i * TILE_BYTES :].ctypes.data)
    return out


def addresses(arrays: Any) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


class Product:
    """Tiles times activations, as the kernel's callers have them."""

    def __init__(self, kernel: Any, rows: U8, activations: npt.NDArray[np.void], offset: int = 0) -> None:
        """activations: ACTIVATIONS[tokens, blocks]"""
        self.kernel, self.tiles = kernel, pack(kernel, rows, offset)
        self.n_tiles, self.n_blocks = len(rows) // TILE_ROWS, rows.shape[1] // SHERRY.block_bytes
        self.d = np.ascontiguousarray(activations["d"])
        self.tables = [aligned(self.n_blocks * kernel.table_bytes) for _ in activations]
        for token, tables in zip(activations, self.tables, strict=True):
            for block in range(self.n_blocks):
                start = tables[block * kernel.table_bytes :]
                kernel.tables(token[block : block + 1].ctypes.data, start.ctypes.data)

    def add_to(self, out: F32, first: bool, begin: int = 0, end: int | None = None) -> None:
        """out[tokens, 32*tiles (and more)] += or = the product of blocks begin..end"""
        end = self.n_blocks if end is None else end
        self.kernel.mul(
            self.n_tiles,
            self.n_blocks * TILE_BYTES,
            self.tiles[begin * TILE_BYTES :].ctypes.data,
            end - begin,
            1,  # plane
            len(self.tables),
            addresses([tables[begin * self.kernel.table_bytes :] for tables in self.tables]),
            addresses([d[begin:] for d in self.d]),
            addresses(list(out)),
            first,
            first,  # prefetching changes nothing
        )

    def result(self) -> F32:
        out = np.full((len(self.tables), self.n_tiles * TILE_ROWS), np.nan, dtype=np.float32)
        self.add_to(out, first=True)
        return out


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_unpacking_gives_the_rows_back(tile_kernel: Any, n_blocks: int) -> None:
    rows = random_rows(TILE_ROWS, n_blocks)
    tile = pack(tile_kernel, rows)
    back = np.zeros_like(rows)
    for i in range(n_blocks):
        place = back[:, i * SHERRY.block_bytes :]
        tile_kernel.unpack(tile[i * TILE_BYTES :].ctypes.data, place.ctypes.data, n_blocks)
    np.testing.assert_array_equal(back, rows)


@pytest.mark.parametrize("extreme", [-127, -1, 0, 1, 127])
def test_every_code_in_every_group(ggml: Any, tile_kernel: Any, extreme: int) -> None:
    codes = np.add.outer(np.arange(CODES), np.arange(GROUPS)).astype(np.uint8) % CODES  # row r, group g: r + g
    rows = sherry.BLOCKS.pack(codes, np.ones((CODES, 1), np.float32))
    weights = PATTERNS[codes].reshape(CODES, SHERRY.block).astype(np.int64)
    matching = (weights * extreme).astype(np.int8)  # with these a row has the largest sum there is: 96*127
    for lanes in (*np.split(matching, 8), np.full((1, SHERRY.block), extreme, np.int8)):
        x = ggml.pack_activations(lanes)[:, None]
        np.testing.assert_array_equal(Product(tile_kernel, rows, x).result(), lanes.astype(np.int64) @ weights.T)


@pytest.mark.parametrize("n_blocks", [1, 3, 5, 33])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
def test_sums_are_exact(ggml: Any, tile_kernel: Any, n_blocks: int, tokens: int, tiles: int) -> None:
    assert tiles <= tile_kernel.max_tiles
    rng = np.random.default_rng(n_blocks)
    codes = rng.integers(0, CODES, (TILE_ROWS * tiles, n_blocks * GROUPS), dtype=np.uint8)
    rows = sherry.BLOCKS.pack(codes, np.ones((len(codes), n_blocks), np.float32))
    lanes = rng.integers(-127, 128, (tokens, n_blocks * SHERRY.block)).astype(np.int8)
    x = ggml.pack_activations(lanes.reshape(-1, SHERRY.block)).reshape(tokens, n_blocks)
    expected = lanes.astype(np.int64) @ PATTERNS[codes].reshape(len(codes), -1).astype(np.int64).T
    product = Product(tile_kernel, rows, x, offset=32)  # memory that is aligned as ggml's is
    np.testing.assert_array_equal(product.result(), expected)

    # adds to what is there, in runs of blocks, and leaves alone what is not its own
    out = np.full((tokens, len(codes) + 16), 1000, dtype=np.float32)
    own = out[:, : len(codes)]
    product.add_to(out, first=False, end=1)
    product.add_to(out, first=False, begin=1)
    np.testing.assert_array_equal(own, expected + 1000)
    assert (out[:, len(codes) :] == 1000).all()


def test_scales(ggml: Any, tile_kernel: Any) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, CODES, (TILE_ROWS, 5 * GROUPS), dtype=np.uint8)
    rows = sherry.BLOCKS.pack(codes, rng.uniform(0.01, 1, (TILE_ROWS, 5)).astype(np.float32))
    x = ggml.activations("generic", (rng.standard_normal(5 * SHERRY.block) * 5).astype(np.float32))[None]
    values = (ggml.unpack_activations(x[0]) * x["d"][0].astype(np.float64)[:, None]).reshape(-1)
    terms = sherry.SHERRY.dequantize(rows).astype(np.float64) * values
    # float32: one rounding in the product of scales, one in each addition, of partial sums below the sum of magnitudes
    tolerance = (1 + 5) * 2.0**-24 * np.abs(terms).sum(axis=1)
    assert (np.abs(Product(tile_kernel, rows, x).result()[0] - terms.sum(axis=1)) <= tolerance).all()


SHAPES = [(1,), (31,), (32,), (33,), (100,), (3, 40), (2, 2, 70)]  # of rows


# blocks of a row: parts of a piece of 128 weights, and whole ones
BLOCKS = [("sherry", 3), ("sherry_2p", 3), ("stq1_0", 3), ("sherry_g32", 1), ("sherry_g32", 5), ("sherry_g32", 8)]


@pytest.mark.parametrize(("name", "blocks"), BLOCKS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tensor_is_read_and_written_whole_and_in_pieces(
    ggml: Any, kinds: Any, name: str, blocks: int, shape: tuple[int, ...]
) -> None:
    row_bytes = blocks * kinds[name].block_bytes
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, int(np.prod(shape)) * row_bytes, dtype=np.uint8)  # any bytes
    with ggml.tiled((*shape, row_bytes), kinds[name]) as tensor:
        tensor.set(0, data)
        np.testing.assert_array_equal(tensor.get(0, data.size), data)
        data = data[::-1].copy()
        cuts = np.unique([0, data.size, *rng.integers(0, data.size, 20)])
        for begin, end in rng.permutation(np.stack([cuts[:-1], cuts[1:]], axis=1)):
            tensor.set(int(begin), data[begin:end])
        for begin, end in np.sort(rng.integers(0, data.size + 1, (20, 2)), axis=1):
            np.testing.assert_array_equal(tensor.get(int(begin), int(end - begin)), data[begin:end])


def test_a_tensor_in_tiles_is_not_the_rows(ggml: Any) -> None:
    """Without this the tests above would pass with a buffer that does nothing."""
    rows = random_rows(64, 2)
    with ggml.tiled(rows.shape) as tensor:
        tensor.set(0, rows.reshape(-1))
        ggml.base.ggml_get_data.restype = ctypes.c_void_p
        inside = ctypes.string_at(ggml.base.ggml_get_data(ctypes.c_void_p(tensor.handle)), rows.size)
        assert inside != rows.tobytes()
