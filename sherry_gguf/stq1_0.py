"""Codes and scales <-> the 42-byte blocks of type STQ1_0: the only place that knows 256, 42 and 43. NumPy only.

The public type of Sherry weights (llama.cpp PR 22836). A block holds 256 weights of a row as 64 groups, whose codes are
SHERRY's (``format.py``) and whose weights lie 16 apart (``groups.py``), with one scale. In the file:

    qs[32]    byte j: low nibble = index of group 2 * j, high nibble = index of group 2 * j + 1
    sign[8]   bit g % 8 of byte g // 8 = sign of group g
    d         IEEE fp16 scale, little-endian, finite and >= 0
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sherry_gguf.blocks import expand, read_grid, round_scales, scales_of, ternary
from sherry_gguf.errors import SherryError
from sherry_gguf.format import GROUP
from sherry_gguf.groups import Groups, from_fours, place, to_fours

I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

TYPE_NAME: Final = "STQ1_0"
TYPE_ID: Final = 43  # that of the type's later revisions; files with 42 and 253 exist (docs/format.md)
FILE_TYPE: Final = 513  # general.file_type, LLAMA_FTYPE_MOSTLY_STQ1_0

BLOCK: Final = 256  # weights in a block
GROUPS_PER_BLOCK: Final = BLOCK // GROUP
BLOCK_BYTES: Final = 42
GRID: Final[Groups] = "stride16"

_BLOCK_DTYPE = np.dtype([("qs", np.uint8, 32), ("sign", np.uint8, 8), ("d", "<f2")])
assert _BLOCK_DTYPE.itemsize == BLOCK_BYTES


def pack(codes: U8, scales: F32) -> U8:
    """codes uint8[rows, k/4], scales float32[rows, k/256] -> blocks uint8[rows, k/256*42].

    A block of scale 0 is all zero bytes, whatever its codes. Raises SherryError as ``blocks.round_scales`` does, and
    where rows are no multiple of 256 weights or scales change inside a block.
    """
    rows, k = codes.shape[0], codes.shape[1] * GROUP
    _require_whole_blocks(k)
    n_blocks = k // BLOCK
    if scales.shape != (rows, n_blocks):
        raise SherryError(f"a scale per {k // scales.shape[1]} weights does not fit STQ1_0, which has one per {BLOCK}")
    d = round_scales(scales, BLOCK, GRID)
    out = np.empty((rows, n_blocks), dtype=_BLOCK_DTYPE)
    blocks = codes.reshape(rows, n_blocks, GROUPS_PER_BLOCK)
    indices = blocks & 0xF
    out["qs"] = indices[..., ::2] | indices[..., 1::2] << 4
    out["sign"] = np.packbits(blocks >> 4, axis=-1, bitorder="little")
    out["d"] = d
    out[d == 0] = 0
    return out.view(np.uint8).reshape(rows, n_blocks * BLOCK_BYTES)


def unpack(blocks: U8) -> tuple[U8, F32]:
    """blocks uint8[rows, k/256*42] -> codes uint8[rows, k/4], scales float32[rows, k/256].

    Raises SherryError for a scale that is negative or not finite.
    """
    rows, row_bytes = blocks.shape
    if row_bytes % BLOCK_BYTES:
        raise SherryError(f"rows of {row_bytes} bytes are no multiple of an STQ1_0 block's {BLOCK_BYTES}; truncated?")
    fields = np.ascontiguousarray(blocks).view(_BLOCK_DTYPE)
    scales = scales_of(fields["d"])
    codes: U8 = np.unpackbits(np.ascontiguousarray(fields["sign"]), axis=-1, bitorder="little") << np.uint8(4)
    codes[..., ::2] |= fields["qs"] & 0xF
    codes[..., 1::2] |= fields["qs"] >> 4
    return codes.reshape(rows, -1), scales


def unpack_ternary(blocks: U8) -> tuple[I8, F32]:
    """blocks uint8[rows, k/256*42] -> -1, 0 or 1 int8[rows, k] in a row's order, scales float32[rows, k/256]."""
    codes, scales = unpack(blocks)
    return from_fours(ternary(codes), GRID), scales


def dequantize(blocks: U8) -> F32:
    """blocks uint8[rows, k/256*42] -> weights float32[rows, k]. Raises SherryError as ``unpack`` does."""
    return from_fours(expand(*unpack(blocks)), GRID)


def pack_exact(weights: F32) -> U8:
    """Weights that lie on STQ1_0's grid already, float32[rows, k] -> blocks uint8[rows, k/256*42].

    Every group has one zero and three weights of the block's one magnitude, an fp16 number; or the block is all zero.
    Raises SherryError, naming row and group, for anything that the blocks would not give back as it is.
    """
    _require_whole_blocks(weights.shape[1])
    fours = to_fours(weights, GRID)
    codes, magnitudes, _ = read_grid(fours, BLOCK)
    blocks = pack(codes, magnitudes)
    wrong = expand(*unpack(blocks)) != fours
    if wrong.any():
        first = place(int(np.argmax(wrong)) // GROUP, weights.shape[1], GRID)
        raise SherryError(
            f"{np.count_nonzero(wrong)} weights are not on STQ1_0's grid, the first in {first}; "
            f"quantize them first (sherry_gguf.quantize)"
        )
    return blocks


def _require_whole_blocks(k: int) -> None:
    if k % BLOCK:
        raise SherryError(
            f"rows of {k} weights are no multiple of {BLOCK}, which STQ1_0 needs; "
            f"keep this tensor in another type (--tensor-type NAME=f16)"
        )
