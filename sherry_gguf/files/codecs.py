"""The ternary types of a file, read chunk by chunk: the only place here that knows where their scales are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sherry_gguf.exact import BY_NAME
from sherry_gguf.files.header import Header
from sherry_gguf.files.types import Typed

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

_CHUNK = 1 << 22  # weights at a time, or one row

_SCALE_FIRST = ("Q2_0", "Q4_0")
TERNARY = tuple(BY_NAME)  # Q4_0 among them: whether it is used so, its weights tell


@dataclass(frozen=True)
class Chunk:
    """Some rows of a tensor.

    t        int8[rows, k]: a weight is t * d; 0 in a block that is not finite
    d        float16[rows, k/block], as in the file
    """

    t: I8
    d: F16

    @property
    def usable(self) -> F32:
        """float32[rows, k/block]: d, and 0 where it is not finite."""
        return np.where(np.isfinite(self.d), self.d, np.float16(0)).astype(np.float32)

    @property
    def weights(self) -> F32:
        """float32[rows, k]"""
        scales = self.usable
        weights: F32 = (self.t.reshape(*scales.shape, -1) * scales[..., None]).reshape(self.t.shape)
        return weights


def rows_of(typed: Typed, header: Header) -> U8:
    """uint8[rows, bytes of a row] of a tensor of a known type, mapped."""
    data = header.data[typed.tensor.start : typed.tensor.start + typed.n_bytes]
    n_rows = typed.tensor.weights // max(typed.tensor.row, 1)
    return data.reshape(n_rows, -1) if n_rows else data.reshape(0, 0)


def read_chunks(typed: Typed, header: Header) -> Iterator[Chunk]:
    """The tensor of a type in TERNARY, rows by rows."""
    assert typed.type is not None
    rows = rows_of(typed, header)
    step = max(1, _CHUNK // max(typed.tensor.row, 1))
    for start in range(0, len(rows), step):
        yield unpack(typed.type.name, typed.type.block_bytes, rows[start : start + step])


def unpack(name: str, block_bytes: int, rows: U8) -> Chunk:
    """uint8[rows, n * block_bytes] -> Chunk. Damaged scales are no error here."""
    blocks = rows.reshape(len(rows), -1, block_bytes).copy()
    field = slice(0, 2) if name in _SCALE_FIRST else slice(block_bytes - 2, block_bytes)
    d = blocks[..., field].copy().view("<f2")[..., 0]
    # a sign is the scale's, not an error, but the codecs of Sherry's types refuse one
    blocks[..., field] = np.where(np.isfinite(d), np.abs(d), 0).astype("<f2")[..., None].view(np.uint8)
    t, _ = BY_NAME[name].unpack(blocks.reshape(len(rows), -1))
    t.reshape(*d.shape, -1)[~np.isfinite(d)] = 0
    return Chunk(t, d)
